# Two images from one file: `api` (no torch) and `worker` (torch).
#
#   docker build --target api    --tag semples-api .
#   docker build --target worker --tag semples-worker .
#   docker build --target worker --tag semples-worker:cpu \
#       --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
#
# BASE is any Debian-like image whose `python3` is 3.11 or newer and has venv.
ARG BASE=python:3.11-slim-bookworm


FROM ${BASE} AS build
# pip has its own environment and stays behind here.
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/semples
ENV PATH=/opt/pip/bin:${PATH} PIP_PYTHON=/opt/semples/bin/python PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# The dependencies first, of a package that is still empty: editing the code does not install them
# again.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir service worker models && touch service/__init__.py worker/__init__.py models/__init__.py


FROM build AS build-api
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt '.[api,s3]'
COPY service service
COPY worker worker
COPY models models
RUN pip install --no-deps --force-reinstall .


FROM build AS build-worker
# An index with other builds of torch, such as those for the CPU, which take a fifth of the space.
ARG TORCH_INDEX=
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt \
        ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} '.[worker,s3]'
COPY service service
COPY worker worker
COPY models models
RUN pip install --no-deps --force-reinstall .


FROM ${BASE} AS runtime
RUN groupadd --gid 10001 semples \
    && useradd --uid 10001 --gid semples --no-create-home --home-dir /tmp \
        --shell /usr/sbin/nologin semples \
    && install --directory /data /bundles \
    && install --directory --owner semples --group semples /data/blobs
# The root may be read-only: only /tmp and /data/blobs are written to.
ENV PATH=/opt/semples/bin:${PATH} HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    SEMPLES_BLOBS=/data/blobs
# Secrets may come as files; see the script.
COPY deploy/from-files /usr/local/bin/
ENTRYPOINT ["from-files"]
WORKDIR /data
USER semples


FROM runtime AS api
COPY --from=build-api /opt/semples /opt/semples
EXPOSE 8000
CMD ["python", "-m", "service", "--host", "0.0.0.0", "--port", "8000"]


FROM runtime AS worker
# Waiting OpenMP threads sleep: spinning ones make torch ten times slower where cores are shared.
# And glibc keeps the memory of large tensors for the next ones: by default it gives it back after each
# and fetches it again, page by page (1.2 to 1.3 times the CPU time, in single runs).
ENV OMP_WAIT_POLICY=passive \
    MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824
COPY --from=build-worker /opt/semples /opt/semples
CMD ["python", "-m", "worker", "run"]
