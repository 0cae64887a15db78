# The image of the Python workers beside each TaskManager, and of the launcher: docker build -t itel-cabinet:0.1.0 .
# Not built by the tests of this project, which have no Docker.
ARG BEAM=2.77.0

FROM python:3.11-slim AS wheel
WORKDIR /project
COPY setup.py pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY transforms transforms
COPY io io
COPY templates templates
COPY queries queries
COPY monitoring monitoring
COPY local local
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM apache/beam_python3.11_sdk:${BEAM} AS beam

FROM python:3.11-slim
COPY constraints.txt /tmp/
COPY --from=wheel /wheel /tmp/wheel
RUN pip install --no-cache-dir -c /tmp/constraints.txt /tmp/wheel/*.whl && pip check && rm -r /tmp/*
# Beam's program that starts Python workers: `-worker_pool` waits for a TaskManager's word, at port 50000. The manifests
# start itel-cabinet-worker instead, which leaves to this one the jobs that bring files to install.
COPY --from=beam /opt/apache/beam /opt/apache/beam
# The workers are this environment, with nothing installed at their start.
ENV RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1
# Memory goes back to the system when it is free: io/worker/allocators.py.
ENV _RJEM_MALLOC_CONF=narenas:2,dirty_decay_ms:500,muzzy_decay_ms:0,tcache:false ARROW_DEFAULT_MEMORY_POOL=system \
    MALLOC_ARENA_MAX=2 MALLOC_MMAP_THRESHOLD_=131072 MALLOC_TRIM_THRESHOLD_=131072
# By number, so that Kubernetes can see that it is not root.
RUN useradd --create-home --uid 10001 worker
USER 10001:10001
ENTRYPOINT ["/opt/apache/beam/boot"]
