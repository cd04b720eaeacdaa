# The image: one static program, certificates to trust, and nothing else: no shell, no libc, no
# root.
#
#   make image                                                                  for this machine
#   make image IMAGE=registry.example.com/sagaz-relay:1.2.3 PLATFORMS=linux/amd64,linux/arm64 IMAGE_ARGS=--push
#
# internal/checks/image runs the build that is given here without Docker, and lets the result
# deliver events.

ARG GO_VERSION=1.26

# Compiles on the machine that builds, for the one that runs: no emulation.
FROM --platform=$BUILDPLATFORM golang:${GO_VERSION} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION
ARG REVISION
# Time zones are in the binary (timetzdata), so TZ works without a file. gRPC without its debug
# pages (grpcnotrace) is 4 MB less: they use html/template, which makes the linker keep every
# method. Without demo and bench (nodemo), which download and start a PostgreSQL.
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -buildvcs=false -tags timetzdata,grpcnotrace,nodemo \
    -ldflags "-s -w -X main.version=$VERSION -X main.revision=$REVISION" -o /out/sagaz-relay ./cmd/sagaz-relay

FROM scratch
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="sagaz-relay" \
      org.opencontainers.image.description="Relays the transactional outbox of the saga library sagaz from PostgreSQL to Kafka and RabbitMQ" \
      org.opencontainers.image.source="https://github.com/sagaz-relay/relay" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/sagaz-relay /usr/local/bin/sagaz-relay
# So that `kubectl exec … -- sagaz-relay doctor` finds it.
ENV PATH=/usr/local/bin
# A number: Kubernetes cannot see whether a name is root.
USER 1000:1000
EXPOSE 8000
# SIGTERM drains; give it longer than RELAY_DRAIN_TIMEOUT.
STOPSIGNAL SIGTERM
ENTRYPOINT ["sagaz-relay"]
CMD ["run"]
