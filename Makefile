# One command each. Everything runs in .venv, which the first command makes; nothing but make and
# Python >= 3.11 has to be there. A stamp remembers what is installed, so a second run starts at once.
#
#   make serve                     install, fill in the reference cases' texts where Open-i answers, serve the page
#   make serve REPORTS=file.tgz    the texts come from a report archive that you have
#   make test                      install and run the tests, in as many processes as there are cores, four at most
#   make test WORKERS=0            the same in one process
#   make develop                   install what training and tests need, no more
#   make lint                      ruff, formatting, mypy --strict
#   make bench                     the speed table, in under ten minutes
#   make compose-check             the container files, as far as can be told without Docker
#   make replay-image              build, serve and stop as the Dockerfile says, without Docker (minutes, 8 GB)
#   make fuzz                      10,000 wrong and half-right requests to a running service, minutes
#   make soak                      ten minutes at twice the capacity, every request accounted for
#   make compare-servers           the service beside a naive handler and LitServe
#   make train-smoke               the whole training path on drawn phantoms, in minutes (ROOT=dir: on your data)
#   make help                      all of this

PYTHON  ?= python3
VENV    ?= .venv
HOST    ?= 127.0.0.1
PORT    ?= 8000
DEVICE  ?= auto
BUNDLE  ?= bundles/iu-xray
WORKERS ?= auto
REPORTS ?= https://openi.nlm.nih.gov/imgs/collections/NLMCXR_reports.tgz
ROOT    ?= runs/phantoms
OUT     ?= runs/smoke

BIN      := $(VENV)/bin
STAMPS   := $(VENV)/.stamps
INSTALL  := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
HYDRATED := .bundles/$(notdir $(patsubst %/,%,$(BUNDLE)))-hydrated
TRAIN     = $(BIN)/python -m training.run --dataset openi --root $(ROOT) --preset smoke --out $(OUT) \
            --device $(DEVICE) --resume --replace

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve hydrate develop test lint format bench fuzz soak compare-servers train-smoke phantoms compose-check \
        replay-image clean

help:
	@sed -n 's/^#   //p' Makefile

# --- what runs --------------------------------------------------------------------------------------------------

serve: $(STAMPS)/serve hydrate
	$(BIN)/python -m service --bundle $(BUNDLE) --host $(HOST) --port $(PORT) --device $(DEVICE)

# The shipped bundle holds no report texts (a bundle you train does). Without a network the service runs all the
# same, showing the cases by id and labels.
hydrate: $(STAMPS)/serve
	@if [ ! -f $(BUNDLE)/MANIFEST.json ]; then \
	  echo "note: there is no bundle at $(BUNDLE); train one (README, Training) or say BUNDLE=dir"; \
	elif grep -qsE '"findings": *null' $(BUNDLE)/index/cases.jsonl; then \
	  $(MAKE) --no-print-directory --silent $(HYDRATED)/MANIFEST.json || \
	  echo "note: the reference cases' texts could not be filled in; serving without them." \
	       "With a report archive at hand: make serve REPORTS=NLMCXR_reports.tgz"; \
	fi

$(HYDRATED)/MANIFEST.json: $(BUNDLE)/MANIFEST.json
	@echo "filling in the reference cases' texts from $(REPORTS)"
	@$(BIN)/python -m retrieval_index.hydrate --bundle $(BUNDLE) --reports "$(REPORTS)" --out $(HYDRATED)
	@touch $@

develop: $(STAMPS)/develop

# A module's tests run in one process, which its fixtures serve; tests/conftest.py puts the long ones first.
test: $(STAMPS)/develop
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(STAMPS)/develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p model -p retrieval_index -p training -p service -p benchmarks

format: $(STAMPS)/develop
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMPS)/develop
	$(BIN)/python -m benchmarks

fuzz: $(STAMPS)/develop
	$(BIN)/python -m benchmarks.fuzz

soak: $(STAMPS)/develop
	$(BIN)/python -m benchmarks.soak --bundle $(BUNDLE) --device $(DEVICE)

compare-servers: $(STAMPS)/develop
	$(INSTALL) -e '.[bench]'
	$(BIN)/python -m benchmarks.compare_servers --bundle $(BUNDLE) --device $(DEVICE)

train-smoke: $(STAMPS)/develop $(if $(filter runs/phantoms,$(ROOT)),phantoms)
	$(TRAIN) $(TRAIN_ARGS)

phantoms: $(STAMPS)/develop
	@[ -f runs/phantoms/NLMCXR_reports.tgz ] || $(BIN)/python -m training.phantoms --out runs/phantoms --studies 60

# Compose files against the compose specification, the Dockerfile against hadolint; no Docker needed. With caddy and
# promtool on the machine also the proxy and the alerts.
compose-check: $(STAMPS)/develop
	$(BIN)/python -m pytest -q tests/test_project_containers.py tests/test_project_proxy.py tests/test_project_monitoring.py

# The Dockerfile's steps in a temporary directory: minutes and 8 GB of disk, given back at the end.
replay-image: $(STAMPS)/develop
	$(BIN)/python -m tests.support.replay_image $(REPLAY_ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# --- what is installed ------------------------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || \
	  { echo "no virtual environment could be made; on Debian: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }

$(STAMPS)/serve: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (the first time some 5 GB, PyTorch with its CUDA libraries: minutes)"
	$(INSTALL) -e .
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/develop: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (the first time some 5 GB, PyTorch with its CUDA libraries: minutes)"
	$(INSTALL) -e '.[train,dev]'
	@mkdir -p $(STAMPS) && touch $(STAMPS)/serve $@
