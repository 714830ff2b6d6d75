# The barrage binary, and nothing else that it needs: the page and the defaults are in it. compose.yaml runs it.
# Written to the images' documentation; where it was not run, the README says so.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# librdkafka is compiled too: the image has make, a C compiler and zlib.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin barrage && cp target/release/barrage /barrage

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/barrage --create-home barrage
COPY --from=build /barrage /usr/local/bin/barrage
USER 10001
# `barrage run` and the embedded bus keep their data below here.
WORKDIR /var/lib/barrage
VOLUME /var/lib/barrage
# Whatever the role, its admin port is the one that is asked below.
ENV BARRAGE_ADMIN__LISTEN=127.0.0.1:3199
# Clients (TCP, WebSocket), connector's gRPC, HTTP, logic's gRPC, admin.
EXPOSE 3101 3102 3109 3111 3119 3199
# There is no curl in the image; bash can speak TCP. HTTP/1.0, so that the answer ends.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/3199 && printf 'GET /ready HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 200 '"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["barrage"]
CMD ["--help"]
