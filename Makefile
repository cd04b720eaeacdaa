# Needs Go and make; the rest is fetched. `make` alone lists the targets.

GOFUMPT     := mvdan.cc/gofumpt@v0.12.0
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
BENCHSTAT   := golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da

# What to test, and how: make test PKG=./sinks/... TESTFLAGS='-run Order -v'
PKG       ?= ./...
TESTFLAGS ?=
# What to test of internal/checks: make test-files FILES=./image
FILES     ?= ./...
# Arguments for demo and bench: make demo ARGS=--keep
ARGS      ?=

# The packages whose behaviour depends on the version of PostgreSQL.
POSTGRES_PKG      := ./relay/store/... ./cdc/... ./migrations/... ./internal/testbed/pgserver ./internal/testbed/pgtest
POSTGRES_VERSIONS := 14 15 16 17 18

# The race detector sees one process. In these it would see no goroutine of the product that other
# tests do not run, too: the program as a process (which has the detector all the same, see
# internal/testbed/program), developers' servers, and what does one thing after the other.
PLAIN_PKG := ./cmd/sagaz-relay ./cmd/sagaz-relay/e2e ./cmd/sagaz-relay/chaos ./cmd/sagaz-relay/edges ./cmd/sagaz-relay/interop \
	./cmd/testenv ./internal/testbed/... ./migrations ./relay/doctor ./relay/repair

# Tests of one package at once: twice as many as processors, because most of them mostly wait.
PARALLEL ?= $(shell expr 2 '*' $$(getconf _NPROCESSORS_ONLN))
GO_TEST   = go test -parallel $(PARALLEL) -timeout 40m $(TESTFLAGS)

# Tests of what is not Go, in a module of their own, and the programs that they use (cmd/testenv
# brings them).
CHECKS := internal/checks
CHECKS_TOOLS := bwrap,chromium,promtool,psql,/etc/ssl/certs/ca-certificates.crt,/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf

SHELL := /bin/sh
comma := ,

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: ## bin/sagaz-relay
	go build -o bin/sagaz-relay ./cmd/sagaz-relay

# What to call the image, and for which machines (linux/amd64,linux/arm64); several at once need
# IMAGE_ARGS=--push.
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null)
IMAGE      ?= sagaz-relay:$(or $(VERSION),dev)
PLATFORMS  ?=
IMAGE_ARGS ?= $(if $(findstring $(comma),$(PLATFORMS)),,--load)

.PHONY: image
image: ## a container image by docker buildx (IMAGE=, PLATFORMS=, VERSION=, IMAGE_ARGS=)
	docker buildx build -t $(IMAGE) $(if $(PLATFORMS),--platform $(PLATFORMS)) \
		--build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null) $(IMAGE_ARGS) .

.PHONY: demo
demo: build ## an outbox, a relay and a load on an embedded PostgreSQL, checked at the end (ARGS=--keep to look inside)
	bin/sagaz-relay demo $(ARGS)

.PHONY: bench
bench: ## the relay against the bare replication stream
	go run ./cmd/sagaz-relay bench $(ARGS)

# The relay next to its peers, in a module of its own. COMPARE=-smoke is a run in few minutes.
COMPARE ?=

.PHONY: bin/compare
bin/compare:
	@cd internal/compare && go build -o $(abspath bin)/ . ./watermill-forwarder

.PHONY: compare
compare: build bin/compare ## the relay next to Debezium Server, Watermill and the Python worker, on the same servers (COMPARE=-smoke, COMPARE=-help)
	bin/compare run -csv bin/compare.csv $(COMPARE)
	bin/compare report -csv bin/compare.csv -plots bin/compare-plots -doc bin/compare.md

.PHONY: test-compare
test-compare: build bin/compare ## a little of make compare, in which each event must arrive once (TESTFLAGS=)
	cd internal/compare && go test -tags smoke -run '^TestSmoke$$' -count=1 -timeout 40m -v $(TESTFLAGS) .

.PHONY: test-debezium
test-debezium: bin/testenv ## messages of a real Debezium Server (460 MB by Maven) and of the relay are the same, for each converter
	bin/testenv -postgres=18 -brokers=kafka -- go test -tags debezium ./cmd/sagaz-relay/e2e -run '^TestConverters$$' -count=1 -v $(TESTFLAGS)

# Each hot stage of an event's way, without servers, on input that a walsender sent. GOMAXPROCS=1: a
# relay has a quarter of the cores. The newest file of testdata/benchmarks is the last release's.
STAGE_PKG  := ./cdc ./cdc/pgoutput ./relay/encode ./relay/engine ./relay/store ./relay/watch ./sinks/kafka ./sinks/rabbitmq
BENCHCOUNT ?= 6
BENCHTIME  ?= 200x
BASELINE   ?= $(shell ls testdata/benchmarks/*.txt | sort -V | tail -n 1)

.PHONY: benchmarks
benchmarks: ## every hot stage, against the last release's numbers: a report, no gate (BENCHCOUNT=6, BASELINE=)
	@mkdir -p bin
	GOMAXPROCS=1 go test -run '^$$' -bench '^BenchmarkStage' -count $(BENCHCOUNT) -benchtime $(BENCHTIME) $(STAGE_PKG) >bin/benchmarks.txt || { cat bin/benchmarks.txt; exit 1; }
	go run $(BENCHSTAT) -ignore pkg,cpu,note $(BASELINE) bin/benchmarks.txt

# What needs no server.
QUICK_PKG := . ./relay ./relay/engine ./relay/watch ./relay/encode ./relay/route ./relay/verify ./cdc/pgoutput ./sinks/file ./sinks/halve ./sinks/stdout ./internal/address ./internal/dashboards ./internal/orders ./internal/term

.PHONY: quick
quick: ## a minute, and no server: engine, encoder, decoder, file sink, import rules
	go vet ./... && go test $(QUICK_PKG)

.PHONY: test
test: bin/testenv ## everything, on real PostgreSQL 14 and 18, Kafka and RabbitMQ (PKG=, TESTFLAGS=)
	bin/testenv -race -postgres=14,18 $(if $(filter ./...,$(PKG)),-tools=$(CHECKS_TOOLS)) -- $(MAKE) --no-print-directory test-inside

# All of PKG, or everything: what needs no race detector, which keeps the processors busy; then what
# mostly waits, two at a time. On 14 is tested what depends on PostgreSQL. Tests that go over
# versions by themselves do so in PLAIN_PKG only: of the others each has a run of its own.
.PHONY: test-inside
test-inside:
ifneq ($(PKG),./...)
	$(GO_TEST) -race $(PKG)
else
	$(GO_TEST) $(PLAIN_PKG)
	$(MAKE) --no-print-directory -j2 test-race-inside test-14-inside
endif

.PHONY: test-race-inside
test-race-inside:
	SAGAZ_TEST_PG_VERSIONS=18 $(GO_TEST) -race $$(go list ./... | grep -vxF "$$(go list $(PLAIN_PKG))")
	$(GO_TEST) -race -run '^Test(Demo|Log|EndAnyway)' ./cmd/sagaz-relay

.PHONY: test-14-inside
test-14-inside:
	SAGAZ_TEST_PG_VERSION=14 SAGAZ_TEST_PG_VERSIONS=14 $(GO_TEST) $(POSTGRES_PKG)
	$(MAKE) --no-print-directory test-files-inside

.PHONY: test-files
test-files: bin/testenv ## manifests, compose file, image, dashboards and documents against the real binary (FILES=./image, TESTFLAGS=)
	bin/testenv -postgres=18 -tools=$(CHECKS_TOOLS) -- $(MAKE) --no-print-directory test-files-inside

# -count=1: what these tests read lies outside their module, where go test does not see it change.
# -p: its packages mostly wait, too.
.PHONY: test-files-inside
test-files-inside:
	cd $(CHECKS) && $(GO_TEST) -p $(PARALLEL) -count=1 $(FILES)
ifeq ($(FILES),./...)
	cd internal/compare && $(GO_TEST) ./...
endif

# Of Prometheus' discoveries only the one that monitoring/ uses: the others bring most of what it
# would have to compile.
STACK      := internal/checks/stack
STACK_TAGS := remove_all_sd,enable_kubernetes_sd

.PHONY: test-stack
test-stack: bin/testenv ## monitoring/ with the Prometheus that it names, built from source: CONTRIBUTING.md (TESTFLAGS=)
	cd $(STACK)/prometheus && go build -tags $(STACK_TAGS) -o $(abspath bin/stack)/ tool
	PATH="$(abspath bin/stack):$$PATH" bin/testenv -postgres=18 -tools=psql -- $(MAKE) --no-print-directory test-stack-inside

.PHONY: test-stack-inside
test-stack-inside:
	cd internal/checks && go test -tags stack -count=1 -timeout 40m $(TESTFLAGS) ./stack ./monitoring/...

# A real API server, for k8s/. etcd's module calls its program "server".
CLUSTER := internal/checks/cluster

.PHONY: test-cluster
test-cluster: ## k8s/ on a real API server, built from source: CONTRIBUTING.md (TESTFLAGS=)
	cd $(CLUSTER)/apiserver && go build -ldflags='-s -w' -o $(abspath bin/cluster)/ tool
	cd internal/checks && PATH="$(abspath bin/cluster):$$PATH" go test -tags cluster -count=1 -timeout 40m $(TESTFLAGS) ./cluster

.PHONY: test-postgres
test-postgres: bin/testenv ## what depends on PostgreSQL, on 14 to 18
	bin/testenv -race -brokers=none -postgres=$(subst $() ,$(comma),$(POSTGRES_VERSIONS)) -- $(MAKE) --no-print-directory test-postgres-inside

.PHONY: test-postgres-inside
test-postgres-inside:
	@set -e; for v in $(POSTGRES_VERSIONS); do \
		echo "PostgreSQL $$v"; \
		SAGAZ_TEST_PG_VERSION=$$v SAGAZ_TEST_PG_VERSIONS=$$v go test -race -timeout 40m $(TESTFLAGS) $(POSTGRES_PKG); \
	done

# For how long rounds of chaos are begun, from which seed on, of which kinds of faults (all when
# empty), among how many slots the table is divided, and where logs stay. SINKS=named is rounds into
# three named sinks, of which one after the other is away. With PODS it is one round of so many
# relays, while the number of slots changes (cmd/sagaz-relay/chaos/crowd_test.go).
DURATION  ?= 10m
SEED      ?=
FAULTS    ?=
SHARDS    ?=
SINKS     ?=
PODS      ?=
CHAOS_DIR ?= bin/chaos

.PHONY: chaos
chaos: bin/testenv ## random faults under load, judged event by event (DURATION=10m, SEED=, FAULTS=kill,pg,kafka-silent, SHARDS=4, SINKS=named, PODS=10)
	mkdir -p $(CHAOS_DIR)
	CHAOS_DURATION=$(DURATION) CHAOS_SEED=$(SEED) CHAOS_FAULTS=$(FAULTS) CHAOS_SHARDS=$(SHARDS) CHAOS_SINKS=$(SINKS) CHAOS_PODS=$(PODS) CHAOS_DIR=$(abspath $(CHAOS_DIR)) \
		bin/testenv -race -postgres=none -- go test -race -count=1 -timeout 0 -run '^TestChaos$$' -v $(TESTFLAGS) ./cmd/sagaz-relay/chaos

.PHONY: docs
docs: ## docs/settings.md from the comments of the Config structs, docs/metrics.md from the metrics' help, rights, dashboards
	go test ./cmd/sagaz-relay -run '^Test(Settings|Rights)Document$$' -args -update
	go test ./relay/watch -run '^TestMetricsOfTheContract$$' -args -update
	go run ./internal/dashboards
	cd $(CHECKS) && go test ./monitoring -run '^TestOperatorRules$$' -args -update

.PHONY: check
check: fmt-check vet staticcheck imports ## formatting, vet, staticcheck and import rules

.PHONY: lint
lint: check ## the same as check

.PHONY: fmt
fmt: ## format all Go files
	go run $(GOFUMPT) -l -w .

.PHONY: fmt-check
fmt-check:
	@files=$$(go run $(GOFUMPT) -l .) || exit 1; \
	test -z "$$files" || { printf 'not formatted (make fmt does it):\n%s\n' "$$files"; exit 1; }

# What a build can leave out: docs/sinks.md.
LEFT_OUT := nonats,noredis,noaws

.PHONY: vet
vet:
	go vet ./...
	GOOS=darwin go vet ./...
	go vet -tags nodemo ./cmd/sagaz-relay
	go vet -tags $(LEFT_OUT) ./cmd/sagaz-relay
	cd $(CHECKS) && go vet ./... && go vet -tags stack,cluster ./stack ./cluster
	cd internal/compare && go vet -tags smoke ./...

.PHONY: staticcheck
staticcheck:
	go run $(STATICCHECK) ./...

.PHONY: imports
imports:
	go test -run '^TestImportsPointInward$$' .

.PHONY: clean
clean: ## what was built here (downloads stay in the cache directory)
	rm -rf bin

# Built, not `go run`: a signal must reach it, and its exit code us.
.PHONY: bin/testenv
bin/testenv:
	@go build -o bin/testenv ./cmd/testenv
