# Needs a Rust toolchain, a C compiler and make. What a target needs beyond that, it installs or names in one line.
CARGO ?= cargo
BARRAGE := $(CARGO) run --release --bin barrage --

.PHONY: help run run.connector run.logic run.job services services.down test check fuzz bench

help: ## Lists every target.
	@grep -hE '^[a-z.]+:.*## ' $(firstword $(MAKEFILE_LIST)) | awk -F ':.*## ' '{ printf "%-16s %s\n", $$1, $$2 }'

run: ## Runs everything in one process on embedded stores, with the page on http://127.0.0.1:3111.
	$(BARRAGE) run

run.connector: ## Runs a connector on config/dev.toml (Kafka and Redis: make services).
	$(BARRAGE) connector --config config/dev.toml

run.logic: ## Runs a logic on config/dev.toml.
	$(BARRAGE) logic --config config/dev.toml

run.job: ## Runs a job on config/dev.toml.
	$(BARRAGE) job --config config/dev.toml

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

bench: ## Runs the first bench: 1,000 viewers at 50 messages/s, then 5,000 at 400/s.
	scripts/bench.sh
