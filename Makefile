# Commands for developers and CI. To choose an interpreter: make PYTHON=python3.12 test
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
# No target with a description is a file.
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*## .*/\1/p' $(MAKEFILE_LIST))

RUST_SOURCES := $(shell find rust -name target -prune -o -type f -print 2>/dev/null)
# Builds the native engine. Without it, everything works on the portable engine.
CARGO := $(shell command -v cargo 2>/dev/null)

help:  ## show this list; times are for two cores; the first target also builds (1 to 4 min)
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml setup.py $(RUST_SOURCES)
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "wyrmhole needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "this Python cannot create virtual environments (on Debian: apt-get install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
ifneq ($(CARGO),)
	@echo "installing wyrmhole and its tools, and building the native engine: 1 to 4 minutes without output"
else
	@echo "installing wyrmhole and its tools: about 30 s without output; no Rust toolchain, so no native engine"
endif
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## show two devices, a handshake, pings and a transfer (10 s)
	@$(BIN)/python examples/demo.py

# Network tests spend most of their time waiting, so two jobs take little more than half the time.
JOBS ?= 2

test: $(STAMP)  ## run every test, JOBS (2) files at once; network tests need root and `make test-deps` (20 min)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile
	@$(MAKE) --no-print-directory test-rust

check: lint  ## run `lint` and the tests that need no network (2 to 9 min)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m 'not network'
	@$(MAKE) --no-print-directory test-rust

lint: $(STAMP)  ## check lint, format, types and words; also Rust, if there is a toolchain
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(BIN)/python scripts/check-words
ifeq ($(CARGO),)
	@echo "no Rust toolchain: the native engine is not checked"
else
	cd rust && cargo fmt --check
	cd rust && cargo clippy --quiet --locked --all-targets -- -D warnings
endif

test-rust:  ## run the Rust tests and the corpus of the Rust fuzz targets, if there is a toolchain
ifneq ($(CARGO),)
	cd rust && cargo test --quiet --locked --package wyrmhole-core
endif

sanitize:  ## run the Rust tests under the address sanitizer (x86_64; uses an unstable compiler option)
	cd rust && RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address cargo test --quiet --locked \
	  --target x86_64-unknown-linux-gnu --target-dir target/sanitize --package wyrmhole-core

native: $(STAMP)  ## rebuild the native engine after a change in rust/ (1 to 3 min)
	cd rust && PYO3_BUILD_EXTENSION_MODULE=1 cargo build --quiet --release --locked
	cp rust/target/release/lib_native.so src/wyrmhole/engine/_native.abi3.so
	cp rust/target/release/netns_helper src/wyrmhole/library/stacks/_netns_helper

parity: $(STAMP)  ## run 10,000 scripts of commands and packets on both engines and compare (minutes)
	SCRIPTS=10000 FIRST_SCRIPT=0 $(BIN)/python -m pytest -q tests/engine_parity/test_parity.py

format: $(STAMP)  ## format Python and Rust, and sort imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	cd rust && cargo fmt

.PHONY: chaos
chaos: $(STAMP)  ## run the full fault suite, as root; writes docs/reliability.md
	rm -f $(VENV)/chaos.jsonl
	WYRMHOLE_CHAOS=full WYRMHOLE_CHAOS_REPORT=$(VENV)/chaos.jsonl $(BIN)/python -m pytest tests/chaos $(CHAOS_ARGS)
	$(BIN)/python -m tests.chaos.report $(VENV)/chaos.jsonl

test-deps:  ## install what the network tests need: tools and other implementations
	@scripts/test-deps

fuzz: $(STAMP)  ## run each fuzz target for SECONDS (60), Python and Rust; FUZZ_ARGS go to python -m fuzz.run
	@scripts/fuzz $(BIN) $(or $(SECONDS),60) $(FUZZ_ARGS)

audit: $(STAMP)  ## look up all dependencies in the advisory databases; needs the network
	@scripts/audit $(BIN)

bench-peers: $(STAMP)  ## compare with other implementations, as root; writes docs/benchmarks.md
	@scripts/bench-deps
	$(BIN)/python bench/peers.py $(BENCH_ARGS)
	$(BIN)/python bench/handshakes.py
	$(BIN)/python bench/configured_peers.py

bench-proxy: $(STAMP)  ## measure the cost of the proxy, as root; writes docs/benchmarks.md
	$(BIN)/python bench/proxy.py --write

bench-micro: $(STAMP)  ## measure microseconds per packet of the pure steps
	$(BIN)/python bench/micro_wire.py
	$(BIN)/python bench/micro_engine.py

soak: $(STAMP)  ## simulate 100,000 peer-hours (SOAK_ARGS="--seed 1 --jobs 2"); see docs/reliability.md
	$(BIN)/python -m wyrmhole.simulation --soak 100000 $(SOAK_ARGS)

clean:  ## remove everything that these targets created in this folder
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist src/*.egg-info rust/target src/wyrmhole/engine/_native*.so \
	  src/wyrmhole/library/stacks/_netns_helper
