# The serving image: model, retrieval index, service; no training code, no weights, no reports.
#
# CUDA comes from the PyTorch wheels, so a slim Python base is enough. A GPU host needs the NVIDIA Container
# Toolkit and a driver that fits TORCH; without a GPU the same image runs on the CPU.
#
#   TORCH          CUDA                driver
#   default        13                  R580 or newer
#   cu126, cu128   12 (PyTorch 2.9)    R525 or newer
#   cpu            none, 4 GB less     none
#
#   docker build -t cxr-report .              # or: --build-arg TORCH=cu126
#   docker run --rm --init --gpus all -p 127.0.0.1:8000:8000 -v "$PWD/bundles:/app/bundles:ro" cxr-report
#
# `python -m tests.support.replay_image` reads this file and replays its steps without Docker.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Address of a mirror; pip ignores empty values. They stay in this stage and are not in the image.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# Dependencies first: they change rarely, and their layer is the largest. EXTRAS=pacs adds those of the DICOM node.
ARG EXTRAS
ARG TORCH=default
COPY pyproject.toml constraints.txt constraints-oldest.txt ./
COPY deploy/install.sh deploy/
RUN python -c "import os, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
      extras = [project['optional-dependencies'][name] for name in os.environ.get('EXTRAS', '').split()]; \
      print(*project['dependencies'], *sum(extras, []), sep='\n')" > /tmp/requirements.txt \
 && sh deploy/install.sh "$TORCH" -r /tmp/requirements.txt
COPY README.md LICENSE ./
COPY cxr_report cxr_report
COPY model model
COPY retrieval_index retrieval_index
COPY service service
RUN pip install --no-deps .

FROM ${PYTHON_IMAGE}
ARG TORCH=default
LABEL org.opencontainers.image.title="cxr-report" \
      org.opencontainers.image.description="Drafts chest X-ray findings for research; not a medical device" \
      org.opencontainers.image.licenses="Apache-2.0" \
      cxr-report.torch="${TORCH}"
# New volumes inherit the owner: .bundles, where `hydrate` writes; cases, for REPORT_USER_CASES_DIR; node, for the DICOM
# node.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin report \
 && install -d /app /app/bundles \
 && install -d -o report -g report /app/.bundles \
 && install -d -o report -g report -m 0700 /app/cases /app/node
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    CUDA_CACHE_PATH=/tmp/cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    REPORT_HOST=0.0.0.0 \
    REPORT_PORT=8000 \
    REPORT_BUNDLE=/app/bundles/iu-xray
WORKDIR /app
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Readiness: 200 when the model is loaded and warm, 503 before (urllib raises). Docker does not restart unhealthy
# containers; a service that cannot continue exits.
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['REPORT_PORT'] + '/health', timeout=4)"]
CMD ["python", "-m", "service"]
