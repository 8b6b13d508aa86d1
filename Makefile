# Everything runs in .venv, which the first command creates. Only make and Python >= 3.11 are needed. A stamp
# file records what is installed, so a second run starts at once.
#
#   make serve                     install, fetch case texts and examples from Open-i, serve the page
#   make serve REPORTS=file.tgz    the same with a local report archive (EXAMPLES=dir: local images of Open-i)
#   make test                      install and run the tests, with one process more than cores, at most four
#   make test WORKERS=0            the same in one process
#   make test-oldest               the same with the oldest supported PyTorch, in .venv-oldest
#   make serve TORCH=cpu           install PyTorch without CUDA: 200 MB instead of 5 GB (more: deploy/install.sh)
#   make develop                   install the dependencies of training and tests
#   make lint                      ruff, formatting, mypy --strict
#   make bench                     measure the speed table (under ten minutes)
#   make compose-check             check the container files, as far as possible without Docker
#   make replay-image              run the steps of the Dockerfile without Docker (minutes, 8 GB)
#   make fuzz                      send 10,000 malformed requests to a running service (minutes)
#   make soak                      overload the service for ten minutes and account for every request
#   make prove-pacs            send 50 studies through the DICOM node, kill it five times, count the reports (minutes)
#   make compare-servers           compare the service with a naive handler and LitServe
#   make train-smoke               run all training stages on drawn phantoms, in minutes (ROOT=dir: on your data)
#   make help                      show this list

PYTHON  ?= python3
VENV    ?= .venv
HOST    ?= 127.0.0.1
PORT    ?= 8000
DEVICE  ?= auto
BUNDLE  ?= bundles/iu-xray
WORKERS ?= auto
REPORTS ?= https://openi.nlm.nih.gov/imgs/collections/NLMCXR_reports.tgz
EXAMPLES ?= https://openi.nlm.nih.gov
ROOT    ?= runs/phantoms
OUT     ?= runs/smoke

BIN      := $(VENV)/bin
STAMPS   := $(VENV)/.stamps
# The PyTorch of the environment, which later commands keep; an environment of 0.2 has the default.
HAS      := $(or $(shell cat $(STAMPS)/torch 2>/dev/null),$(if $(wildcard $(STAMPS)/serve),default))
TORCH    ?= $(or $(HAS),default)
INSTALL   = PYTHON=$(BIN)/python RECORD=$(STAMPS)/torch PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
            sh deploy/install.sh $(TORCH)
PINS     := pyproject.toml constraints.txt constraints-oldest.txt
SAY_SIZE  = @echo "installing into $(VENV), TORCH=$(TORCH): the first time minutes and 5 GB (cpu: 0.5 GB)"
HYDRATED := .bundles/$(notdir $(patsubst %/,%,$(BUNDLE)))-hydrated
SHOWN    := .bundles/examples
TRAIN     = $(BIN)/python -m training.run --dataset openi --root $(ROOT) --preset smoke --out $(OUT) \
            --device $(DEVICE) --resume --replace

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve hydrate examples develop test test-oldest lint format bench fuzz soak prove-pacs compare-servers train-smoke phantoms \
        compose-check replay-image clean same-torch

help:
	@sed -n 's/^#   //p' Makefile

# --- what runs --------------------------------------------------------------------------------------------------

serve: $(STAMPS)/serve hydrate examples
	REPORT_EXAMPLES_DIR="$${REPORT_EXAMPLES_DIR-$(SHOWN)}" \
	$(BIN)/python -m service --bundle $(BUNDLE) --host $(HOST) --port $(PORT) --device $(DEVICE)

# The shipped bundle holds no report texts (a bundle that you train does). Without a network the service still runs
# and shows the cases by id and labels.
hydrate: $(STAMPS)/serve
	@if [ ! -f $(BUNDLE)/MANIFEST.json ]; then \
	  echo "note: there is no bundle at $(BUNDLE); train one (README, Training) or set BUNDLE=dir"; \
	elif grep -qsE '"findings": *null' $(BUNDLE)/index/cases.jsonl; then \
	  $(MAKE) --no-print-directory --silent $(HYDRATED)/MANIFEST.json || \
	  echo "note: the texts of the reference cases could not be restored; serving without them." \
	       "With a local report archive: make serve REPORTS=NLMCXR_reports.tgz"; \
	fi

$(HYDRATED)/MANIFEST.json: $(BUNDLE)/MANIFEST.json
	@echo "restoring the texts of the reference cases from $(REPORTS)"
	@$(BIN)/python -m retrieval_index.hydrate --bundle $(BUNDLE) --reports "$(REPORTS)" $(if $(IMAGES),--images "$(IMAGES)") --out $(HYDRATED)
	@touch $@

# Radiographs for the page, which are not in the repository either. EXAMPLES= (empty) fetches none.
examples: $(STAMPS)/serve
	@[ -z "$(EXAMPLES)" ] || $(MAKE) --no-print-directory --silent $(SHOWN)/complete || \
	  echo "note: not all example studies could be fetched; the page offers the others, and drawings." \
	       "The next make serve tries again; make serve EXAMPLES= does not"

$(SHOWN)/complete: retrieval_index/examples.py
	@echo "fetching example studies from $(EXAMPLES)"
	@$(BIN)/python -m retrieval_index.examples --images "$(EXAMPLES)" --out $(SHOWN)
	@touch $@

develop: $(STAMPS)/develop

# The tests of a module run in one process and share its fixtures; tests/conftest.py puts the long ones first. The
# processes that tests start keep what they compile, or each would compile the project again.
unexport PYTHONDONTWRITEBYTECODE
test: $(STAMPS)/develop
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-oldest:
	$(MAKE) test VENV=.venv-oldest TORCH=oldest

lint: $(STAMPS)/develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p cxr_report -p model -p retrieval_index -p training -p service -p benchmarks -p tools

format: $(STAMPS)/develop
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMPS)/develop
	$(BIN)/python -m benchmarks

fuzz: $(STAMPS)/develop
	$(BIN)/python -m benchmarks.fuzz

soak: $(STAMPS)/develop
	$(BIN)/python -m benchmarks.soak --bundle $(BUNDLE) --device $(DEVICE)

prove-pacs: $(STAMPS)/develop
	$(BIN)/python -m benchmarks.pacs
	$(BIN)/python -m benchmarks.pacs --stow

compare-servers: $(STAMPS)/develop
	$(INSTALL) -e '.[bench]'
	$(BIN)/python -m benchmarks.compare_servers --bundle $(BUNDLE) --device $(DEVICE)

train-smoke: $(STAMPS)/develop $(if $(filter runs/phantoms,$(ROOT)),phantoms)
	$(TRAIN) $(TRAIN_ARGS)

phantoms: $(STAMPS)/develop
	@[ -f runs/phantoms/NLMCXR_reports.tgz ] || $(BIN)/python -m training.phantoms --out runs/phantoms --studies 60

# Compose files against the compose specification, the Dockerfile against hadolint. Docker is not needed. Where caddy
# and promtool are installed, the proxy and the alerts too.
compose-check: $(STAMPS)/develop
	$(BIN)/python -m pytest -q tests/test_project_containers.py tests/test_project_proxy.py tests/test_project_monitoring.py

# The steps of the Dockerfile in a temporary directory: minutes and 8 GB of disk, freed at the end.
replay-image: $(STAMPS)/develop
	$(BIN)/python -m tests.support.replay_image $(REPLAY_ARGS)

clean:
	rm -rf $(VENV) .venv-oldest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# --- what is installed ------------------------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || \
	  { echo "no virtual environment could be made; on Debian: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }

# An environment keeps its PyTorch, because pip does not replace a build of the same version.
same-torch:
	@[ $(TORCH) = $(or $(HAS),$(TORCH)) ] || \
	  { echo "$(VENV) has TORCH=$(HAS); add VENV=.venv-$(TORCH), or run make clean first" >&2; exit 1; }

$(STAMPS)/serve: $(PINS) | $(BIN)/python same-torch
	$(SAY_SIZE)
	$(INSTALL) -e .
	@touch $@

$(STAMPS)/develop: $(PINS) | $(BIN)/python same-torch
	$(SAY_SIZE)
	$(INSTALL) -e '.[train,dev]'
	@touch $(STAMPS)/serve $@
