# The worker: torch, Celery, and nothing that it could be told to build or fetch code with.  From the repository's root:
#   docker build -f deploy/worker.Dockerfile -t feature-atlas-worker:0.1.0 .                            for GPUs (CUDA)
#   docker build -f deploy/worker.Dockerfile --build-arg TORCH=cpu -t feature-atlas-worker:0.1.0-cpu .  for CPUs
# TORCH is a backend as uv names them: cpu, cu126, cu130 ...; empty takes the package index's own build, which has CUDA.
# The wheels bring CUDA's libraries: the host needs only the driver and the NVIDIA container toolkit.
FROM python:3.13.9-slim-trixie AS build
ARG TORCH=""
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
# A C compiler for the kernels that CPUs render with.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir uv==0.13.9 && uv venv /opt/feature-atlas
WORKDIR /build
# Dependencies first: gigabytes that change with these two files only.
COPY pyproject.toml deploy/constraints.txt ./
RUN uv pip install --no-cache --python /opt/feature-atlas/bin/python ${TORCH:+--torch-backend="$TORCH"} \
    -r pyproject.toml --extra worker -c constraints.txt
COPY README.md LICENSE ./
COPY shared shared
COPY producer producer
COPY worker worker
RUN uv pip install --no-cache --python /opt/feature-atlas/bin/python --no-deps .

FROM python:3.13.9-slim-trixie
# tini is process 1: it passes signals on and buries the rendering processes whose parent died.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 atlas && useradd --uid 10001 --gid atlas --no-create-home --home-dir /tmp atlas \
    && install -d -o atlas -g atlas /cache
COPY --from=build /opt/feature-atlas /opt/feature-atlas
ENV PATH=/opt/feature-atlas/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    FEATURE_ATLAS_CACHE_DIR=/cache FEATURE_ATLAS_ALIVE_FILE=/tmp/alive
USER 10001:10001
WORKDIR /tmp
STOPSIGNAL SIGTERM
# The worker touches the file every second once it has met the broker; an outage of the broker does not stop it.
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=4 \
    CMD ["sh", "-c", "find \"$FEATURE_ATLAS_ALIVE_FILE\" -mmin -1 | grep -q ."]
ENTRYPOINT ["tini", "--", "feature-atlas"]
CMD ["worker"]
