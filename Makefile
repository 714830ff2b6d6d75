# Needs a Rust toolchain, a C compiler and make. What a target needs beyond that, it installs or names in one line.
CARGO ?= cargo
BARRAGE := $(CARGO) run --release --bin barrage --
# Three terminals may ask for it at once: the first one makes it.
DEV = mkdir -p .cache && { test -s .cache/dev.secret || (umask 077; od -An -tx1 -N32 /dev/urandom | tr -d ' \n' > .cache/dev.secret.$$$$ \
	&& ln .cache/dev.secret.$$$$ .cache/dev.secret 2>/dev/null; rm -f .cache/dev.secret.$$$$); } && BARRAGE_CLUSTER__SECRET=$$(cat .cache/dev.secret)

.PHONY: help run run.connector run.logic run.job services services.down test check fuzz bench bench.million

help: ## Lists every target.
	@grep -hE '^[a-z.]+:.*## ' $(firstword $(MAKEFILE_LIST)) | awk -F ':.*## ' '{ printf "%-16s %s\n", $$1, $$2 }'

run: ## Runs everything in one process on embedded stores, with the page on http://127.0.0.1:3111.
	$(BARRAGE) run

run.connector: ## Runs a connector on config/dev.toml (Kafka and Redis: make services).
	$(DEV) $(BARRAGE) connector --config config/dev.toml

run.logic: ## Runs a logic on config/dev.toml.
	$(DEV) $(BARRAGE) logic --config config/dev.toml

run.job: ## Runs a job on config/dev.toml.
	$(DEV) $(BARRAGE) job --config config/dev.toml

services: ## Starts Kafka and Redis on their usual ports, on loopback.
	scripts/services.sh up

services.down: ## Stops them.
	scripts/services.sh down

test: ## Runs all tests; those that need Kafka, Redis, Node or Chromium start them, or say that they are skipped.
	scripts/test.sh

check: ## Format, lints, documentation, licences and sources of dependencies, the committed bundle of the page.
	scripts/check.sh

fuzz: ## Fuzzes each codec for SECONDS (60).
	scripts/fuzz.sh $(or $(SECONDS),60)

bench: ## Measures what BENCHMARKS.md says, prints the targets, writes it anew (under 30 minutes).
	scripts/bench.sh

bench.million: ## A million sessions at once (20 minutes, 13 GiB; SESSIONS=... for fewer).
	scripts/bench-million.sh
