# Everything but rendering, without torch: enqueue, status, publish, verify, fetch, doctor.  From the repository's root:
#   docker build -f deploy/producer.Dockerfile -t feature-atlas-producer:0.1.0 .
FROM python:3.13.9-slim-trixie AS build
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
RUN pip install --no-cache-dir uv==0.13.9 && uv venv /opt/feature-atlas
WORKDIR /build
COPY pyproject.toml deploy/constraints.txt ./
RUN uv pip install --no-cache --python /opt/feature-atlas/bin/python -r pyproject.toml --extra producer -c constraints.txt
COPY README.md LICENSE ./
COPY shared shared
COPY producer producer
COPY worker worker
RUN uv pip install --no-cache --python /opt/feature-atlas/bin/python --no-deps .

FROM python:3.13.9-slim-trixie
RUN groupadd --gid 10001 atlas && useradd --uid 10001 --gid atlas --no-create-home --home-dir /tmp atlas
COPY --from=build /opt/feature-atlas /opt/feature-atlas
ENV PATH=/opt/feature-atlas/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /tmp
# A command that ends is no service; this is for those who let one run, such as status --watch.
HEALTHCHECK --interval=60s --timeout=10s CMD ["feature-atlas", "--version"]
ENTRYPOINT ["feature-atlas"]
CMD ["--help"]
