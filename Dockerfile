# syntax=docker/dockerfile:1
# The worker and the coordinator on the CPU.
#
#   docker build --tag neurogrid .
#   docker run --rm -p 127.0.0.1:8080:8080 -e NEUROGRID_API_KEY=change-me neurogrid worker
#
# A program in a container is reached from outside it, so it listens on all of the container's addresses; without a key it
# refuses to. compose.yaml starts a grid of a coordinator and a worker.
#
# It has been built to its end with buildah and run with podman, on stand-ins for the three images that it starts from: Debian 12 with what
# each of them brings. 191 MB, 82 MB packed. Those images themselves and Docker have not been tried yet.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# The caches outlive the build, so the executable is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,id=neurogrid,target=/src/target \
    cargo build --locked --profile dist --package neurogrid && \
    install -D target/dist/neurogrid /out/neurogrid

# ONNX Runtime's shared library, out of its Python wheel. Without it the worker runs ONNX models on its built-in engine.
FROM python:3.11-slim-bookworm AS onnxruntime
COPY e2e/requirements.txt /requirements.txt
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN grep '^onnxruntime==' /requirements.txt | cut -d' ' -f1 > /onnxruntime.txt && \
    pip install --no-cache-dir --no-deps --target /wheel --requirement /onnxruntime.txt && \
    mkdir -p /out && cp /wheel/onnxruntime/capi/libonnxruntime.so.* /out/

FROM debian:bookworm-slim
# Not pinned: a release of the distribution keeps only the newest of its packages, and an old number would break the build.
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install --yes --no-install-recommends ca-certificates tini && \
    rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/cache/debconf/*-old && \
    groupadd --gid 10001 neurogrid && \
    useradd --uid 10001 --gid neurogrid --no-log-init --no-create-home --home-dir /var/lib/neurogrid \
        --shell /usr/sbin/nologin neurogrid && \
    install -d -o neurogrid -g neurogrid /var/lib/neurogrid /var/lib/neurogrid/cache /var/lib/neurogrid/state
COPY --from=onnxruntime /out/ /usr/local/lib/
RUN ldconfig
COPY --from=build /out/neurogrid /usr/local/bin/neurogrid
COPY deploy/healthy /usr/local/bin/healthy
COPY LICENSE /usr/share/doc/neurogrid/LICENSE

# neurogrid, by its numbers: who runs the image can tell that it is not root.
USER 10001:10001
WORKDIR /var/lib/neurogrid
# Models are kept in the cache; the node's key and the coordinator's database in the state. ONNX Runtime as Microsoft builds it reports
# its use over the network, and nothing but this variable keeps it from that altogether.
ENV ORT_DISABLE_TELEMETRY=1 \
    NEUROGRID_CACHE_DIR=/var/lib/neurogrid/cache \
    NEUROGRID_DATA_DIR=/var/lib/neurogrid/state \
    NEUROGRID_WORKER_BIND=0.0.0.0:8080 \
    NEUROGRID_COORDINATOR_BIND=0.0.0.0:3001
VOLUME ["/var/lib/neurogrid/cache", "/var/lib/neurogrid/state"]
EXPOSE 8080 3001
STOPSIGNAL SIGTERM
# For a coordinator: `--health-cmd "healthy 3001 /api/health/ready"`.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["healthy"]
ENTRYPOINT ["/usr/bin/tini", "--", "neurogrid"]
CMD ["worker"]
