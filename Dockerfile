# The `keylane` command, in an image that runs as nobody in particular:
#
#   docker build -t keylane .
#   docker run --rm keylane status --amqp-url amqp://user:password@broker:5672
#
# A handler of your own (`--exec`, `--pipe`) comes on top: FROM keylane, COPY it in, and
# `CMD ["work", "--exec", "/app/handle"]`.
ARG DEBIAN=bookworm

FROM rust:1-slim-${DEBIAN} AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin keylane

FROM debian:${DEBIAN}-slim
# For amqps:// and --http https://, with the authorities that Debian trusts.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/keylane /usr/local/bin/keylane
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
# A worker drains. The entry point is the command itself, so the signal reaches it.
STOPSIGNAL SIGTERM
ENTRYPOINT ["keylane"]
CMD ["--help"]
