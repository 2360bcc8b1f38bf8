# What people do with this project, a word each. `make` alone lists it.

CARGO ?= cargo
# Passed on to each build, such as --locked.
CARGO_ARGS ?=

# The development profile: minutes nearer to the first chat than the release profile with its link-time
# optimisation, and `make test` builds the same crates (Cargo.toml says what it optimises).
PROFILE = dev
BUILD = $(CARGO) build $(CARGO_ARGS) --profile $(PROFILE) --package twinlock

# Without the state of incremental compilation a first build takes a fifth less time. Whoever builds with
# cargo itself has that state, and then the commands here use it too.
ifeq ($(wildcard $(or $(CARGO_TARGET_DIR),target)/debug/incremental/*),)
export CARGO_INCREMENTAL ?= 0
endif

.PHONY: help build run run-server run-client test lint audit sbom bench torture files-run fuzz fuzz-min clean clean-run

help: ## list this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

build: ## the program, in target/debug; PROFILE=release makes the one to install, in target/release
	@$(BUILD)

run: build ## a server of your own and a chat on it; all its state is in .run/
	@./scripts/run.sh all

run-server: build ## the server alone with its log on the screen, until Ctrl-C
	@./scripts/run.sh server

run-client: build ## a chat on the server of run-server; AS=bob talks as somebody you invite
	@./scripts/run.sh client

test: ## all tests; prints how many ran
	@./scripts/test.sh $(CARGO_ARGS)

lint: ## formatting, clippy, documentation and scripts, warnings being errors
	@./scripts/lint.sh $(CARGO_ARGS)

audit: ## known vulnerabilities in dependencies; needs cargo-deny and the network
	@./scripts/audit.sh

sbom: ## a CycloneDX list of what the program is built from, in target/sbom/; needs cargo-cyclonedx
	@./scripts/sbom.sh

bench: ## measure a server on this machine, in a release build; writes docs/benchmarks.md
	@$(MAKE) --no-print-directory build PROFILE=release
	@./scripts/bench.sh

torture: ## kills, power cuts, bad networks and disks, 5,000 lines coming back, floods, timing: 20 minutes and its building; TWINLOCK_SEED=N again
	@./scripts/torture.sh $(CARGO_ARGS)

files-run: ## 10,000 files, one of 4 GiB, and a GiB with a hundred breaks up and down, in a release build (20 GiB of disk)
	TWINLOCK_TEST_FILES=full $(CARGO) test $(CARGO_ARGS) --release --package twinlock --test integration files_many:: -- --nocapture
	TWINLOCK_TORN=1024x100 $(CARGO) test $(CARGO_ARGS) --release --package twinlock --test integration files_torn:: -- --nocapture

fuzz: ## look for inputs that break a law; TARGET=name alone, for SECONDS=600 each
	@TARGET=$(TARGET) SECONDS_EACH=$(SECONDS) ./scripts/fuzz.sh

fuzz-min: ## put what fuzzing found into the corpora that `make test` replays
	@TARGET=$(TARGET) ./scripts/fuzz.sh min

clean: ## remove what was built; the chat in .run/ stays
	$(CARGO) clean

clean-run: ## remove the server, the record and the profiles that `make run` made
	rm -rf .run
