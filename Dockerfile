# Three images from one file: `gateway` (no torch), `worker-cpu` (with the embedded model), `worker-cuda`.
# All run as a numeric non-root user on a read-only root file system with a tmpfs on /tmp.
# Pin the base by digest: --build-arg PYTHON_IMAGE=python:3.11-slim@sha256:...
# pip's own variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL) come in as build arguments and stay in the build stages.
ARG PYTHON_IMAGE=python:3.11-slim

# --- build: a virtual environment that the final stages copy whole ---

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
RUN python3 -m venv /opt/twigserve
ENV PATH=/opt/twigserve/bin:$PATH
# Requirements apart from the source, so that a change of code does not install torch again.
COPY pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
open('base.txt', 'w').write('\n'.join(p['dependencies'])); \
open('worker.txt', 'w').write('\n'.join(p['optional-dependencies']['worker']))" \
 && pip install -r base.txt

# The gateway gets no `model` package: neither weights nor anything that could import torch.
FROM build AS build-gateway
COPY README.md LICENSE ./
COPY service service
RUN pip install --no-deps . && pip uninstall --yes setuptools pip
# uvloop's wheel carries 12 MB of debug symbols. (Not so Pillow's libraries, which strip would break.) And no code
# is ever highlighted here, so what highlights it need not be compiled.
# hadolint ignore=DL3008
RUN mkdir -p /var/cache/apt/archives/partial \
 && apt-get update && apt-get install -y --no-install-recommends binutils \
 && find /opt/twigserve -path '*/uvloop/*.so' -exec strip --strip-unneeded {} + \
 && find /opt/twigserve -path '*/pygments/*' -name '*.pyc' -delete \
 && rm -rf /var/lib/apt/lists/*

FROM build AS build-worker-cpu
# For the native kernels alone; the compiler stays in this stage.
# hadolint ignore=DL3008
RUN mkdir -p /var/cache/apt/archives/partial \
 && apt-get update && apt-get install -y --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
COPY constraints.txt ./
# An index may serve torch's CUDA build under the pinned version too; the CPU build comes then from
# an index given as PIP_EXTRA_INDEX_URL.
RUN pip install -r worker.txt -c constraints.txt
COPY README.md LICENSE ./
COPY model model
COPY service service
# Kernels for every level of this architecture: the machine that runs the image chooses. -P: not those of /src.
RUN pip install --no-deps . && python -P -m model.native.build && pip uninstall --yes pip

# Untested by us, for want of a GPU: torch's own CUDA libraries come as wheels, the driver from the host.
FROM build AS build-worker-cuda
RUN pip install -r worker.txt
COPY README.md LICENSE ./
COPY model model
COPY service service
RUN rm -rf model/weights && pip install --no-deps . && pip uninstall --yes pip

# --- run ---

FROM ${PYTHON_IMAGE} AS runtime
ARG PYTHON_IMAGE
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="twigserve" \
      org.opencontainers.image.description="Descriptions of pictures by TwigVLM, served over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
# Whatever wants a cache or a home finds the only place it may write to.
ENV PATH=/opt/twigserve/bin:$PATH \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/.cache \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["twigserve"]

FROM runtime AS gateway
COPY --from=build-gateway /opt/twigserve /opt/twigserve
ENV TWIGSERVE_GATEWAY_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 CMD ["twigserve", "check", "gateway"]
CMD ["gateway"]

FROM runtime AS worker
# OMP_WAIT_POLICY: threads that spin between rounds would eat the CPU share of their neighbours.
# HF_HUB_OFFLINE: a worker fetches nothing; the model is in the image, mounted, or brought by `twigserve fetch`.
ENV TWIGSERVE_WORKER_METRICS_HOST=0.0.0.0 \
    OMP_WAIT_POLICY=passive \
    HF_HUB_OFFLINE=1
# SIGINT, not SIGTERM: both drain once the service runs, but the kernel keeps SIGTERM from a process 1 that
# has no handler yet, and a worker has none while it loads its model. Python handles SIGINT from its first line.
STOPSIGNAL SIGINT
EXPOSE 9100
# A probe starts a Python beside an engine that uses every core it is given.
HEALTHCHECK --interval=30s --timeout=30s --start-period=300s --retries=2 CMD ["twigserve", "check", "worker"]
CMD ["worker"]

FROM worker AS worker-cuda
COPY --from=build-worker-cuda /opt/twigserve /opt/twigserve
# NVIDIA's container runtime looks at these; the model's place is given by TWIGSERVE_WORKER_VLM and _TWIG.
ENV TWIGSERVE_WORKER_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM worker AS worker-cpu
COPY --from=build-worker-cpu /opt/twigserve /opt/twigserve
