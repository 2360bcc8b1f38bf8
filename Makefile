# The tasks of this project. `make` alone lists them.

CARGO ?= cargo
# Arguments for each build, such as --locked.
CARGO_ARGS ?=

# The development profile builds minutes faster than the release profile with its link-time
# optimisation, and shares its crates with `make test` (Cargo.toml lists the optimised ones).
PROFILE = dev
BUILD = $(CARGO) build $(CARGO_ARGS) --profile $(PROFILE) --package twinlock

# A first build without incremental state takes a fifth less time. If a direct cargo build has created
# that state, the builds here use it too.
ifeq ($(wildcard $(or $(CARGO_TARGET_DIR),target)/debug/incremental/*),)
export CARGO_INCREMENTAL ?= 0
endif

.PHONY: help build run run-server run-client test lint audit sbom bench torture files-run fuzz fuzz-min clean clean-run

help: ## list the tasks
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

build: ## build the program in target/debug; PROFILE=release builds the one to install, in target/release
	@$(BUILD)

run: build ## start a local server and a chat on it; all state is in .run/
	@./scripts/run.sh all

run-server: build ## start only the server, with its log on the screen, until Ctrl-C
	@./scripts/run.sh server

run-client: build ## open a chat on the server of run-server; AS=bob chats as another user, whom you invite
	@./scripts/run.sh client

test: ## run all tests and print how many ran
	@./scripts/test.sh $(CARGO_ARGS)

lint: ## check formatting, clippy, documentation and scripts; warnings are errors
	@./scripts/lint.sh $(CARGO_ARGS)

audit: ## check dependencies for known vulnerabilities; needs cargo-deny and the network
	@./scripts/audit.sh

sbom: ## write a CycloneDX list of the crates in the program to target/sbom/; needs cargo-cyclonedx
	@./scripts/sbom.sh

bench: ## measure a server on this machine in a release build; writes docs/benchmarks.md
	@$(MAKE) --no-print-directory build PROFILE=release
	@./scripts/bench.sh

torture: ## test kills, power cuts, bad networks and disks, 5,000 reconnections, 10,000 idle connections, floods, timing: up to 45 minutes plus the build; TWINLOCK_SEED=N repeats a run
	@./scripts/torture.sh $(CARGO_ARGS)

files-run: ## transfer 10,000 files, one of 4 GiB, and one of 1 GiB up and down with a hundred interruptions, in a release build (20 GiB of disk)
	TWINLOCK_TEST_FILES=full $(CARGO) test $(CARGO_ARGS) --release --package twinlock --test integration files_many:: -- --nocapture
	TWINLOCK_TORN=1024x100 $(CARGO) test $(CARGO_ARGS) --release --package twinlock --test integration files_torn:: -- --nocapture

fuzz: ## search for inputs that violate an invariant; TARGET=name alone, SECONDS=600 for each
	@TARGET=$(TARGET) SECONDS_EACH=$(SECONDS) ./scripts/fuzz.sh

fuzz-min: ## merge the findings of fuzzing into the corpora that `make test` replays
	@TARGET=$(TARGET) ./scripts/fuzz.sh min

clean: ## remove all build output; keeps .run/
	$(CARGO) clean

clean-run: ## remove the server, the record and the profiles of `make run`
	rm -rf .run
