# One image for every role: `fleek api` (the default), `fleek worker`, `fleek db upgrade`, `fleek storage init`.
# It runs as user 10001 on a read-only root file system, given a writable /var/lib/fleek and /tmp.
ARG PYTHON_IMAGE=python:3.13.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
ENV BUILD_TOOLS=/build UV_CACHE_DIR=/var/cache/uv
COPY requirements/build.txt requirements/runtime.txt requirements/
COPY deploy/image/build deploy/image/
RUN --mount=type=cache,target=/var/cache/uv deploy/image/build packages /opt/fleek
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN --mount=type=cache,target=/var/cache/uv deploy/image/build fleek /opt/fleek

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="Fleek" \
    org.opencontainers.image.description="One durable HTTP API in front of any media-generation model" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 10001 fleek \
    && useradd --no-log-init --no-create-home --uid 10001 --gid 10001 --home-dir /var/lib/fleek --shell /usr/sbin/nologin fleek \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/fleek \
    && install --directory --mode=0755 /etc/fleek
COPY --from=build /opt/fleek /opt/fleek
COPY --chmod=0755 script/prestart /opt/fleek/bin/prestart
# Temporary files go to the volume: pictures of many megabytes would fill a /tmp that lives in memory.
ENV PATH=/opt/fleek/bin:$PATH \
    HOME=/var/lib/fleek \
    TMPDIR=/var/lib/fleek \
    FLEEK_HOME=/var/lib/fleek \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# `fleek.toml` is read from here.
WORKDIR /etc/fleek
USER 10001:10001
VOLUME /var/lib/fleek
EXPOSE 8000
STOPSIGNAL SIGTERM
# What is healthy depends on the role: whoever starts the image says (compose: docker-compose.yml).
HEALTHCHECK NONE
CMD ["fleek", "api"]
