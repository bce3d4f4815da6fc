# Stillpoint: `make demo` shows the main job end to end, `make test` proves it. `make help` lists the rest.
SHELL := /bin/bash
SWIFT ?= swift
SEEDS ?= 2000
TEST_SEEDS ?= 1000
FUZZ_SECONDS ?= 60
SOURCES := Package.swift Sources Tests

.PHONY: help setup build release demo demo-kvm run test test-long lint format simulate bench bench-kvm bench-iscsi fuzz sanitize clean

help:
	@echo "make demo      build, then snapshot, damage and revert a live PostgreSQL on an iSCSI LUN"
	@echo "make demo-kvm  build, then snapshot, delete and restore virtual machines"
	@echo "make run       build and start a storage node on loopback (DATA=DIR)"
	@echo "make test      install what the tests need, lint, build and run them all"
	@echo "make test-long  tests that take minutes: PostgreSQL in a guest, under load, snapshot and restore"
	@echo "make simulate  run the store's simulator over SEEDS=$(SEEDS) seeds from FIRST_SEED=1 on, or replay SEED=N (MODE=, VERBOSE=1)"
	@echo "make bench     the store beside a raw file, qcow2, btrfs and xfs; the node from outside (BENCH=SECTIONS)"
	@echo "make bench-kvm how long guests are quiet during a snapshot, seen from inside, against other ways (KVM_BENCH=OPTIONS)"
	@echo "make bench-iscsi  the iSCSI target beside tgtd, with one client (CASES=REGEX, ROUNDS=3, SECONDS_EACH=1.5)"
	@echo "make sanitize  the SCSI and iSCSI tests under the thread and the address sanitizer"
	@echo "make fuzz      fuzz the parsers that face the network for FUZZ_SECONDS=$(FUZZ_SECONDS) each"
	@echo "make lint      swift format lint;  make format: apply it"
	@echo "make clean     remove build products"

setup:
	@scripts/setup.sh build

build: setup
	$(SWIFT) build

release: setup
	$(SWIFT) build -c release

demo:
	@scripts/setup.sh build demo
	$(SWIFT) build -c release
	@scripts/demo.sh "$$($(SWIFT) build -c release --show-bin-path)"

demo-kvm:
	@scripts/setup.sh build demo-kvm
	$(SWIFT) build -c release
	@scripts/demo-kvm.sh "$$($(SWIFT) build -c release --show-bin-path)"

run: setup
	$(SWIFT) build -c release --product stillpoint
	"$$($(SWIFT) build -c release --show-bin-path)/stillpoint" serve $(if $(DATA),--data $(DATA))

test:
	@scripts/setup.sh build test
	@$(MAKE) --no-print-directory lint
	SEEDS=$(TEST_SEEDS) Simulating/run.sh
	@# What is kept of a run is its end: test.py says there what failed.
	scripts/test.py $(SWIFT) build --build-tests
	@# One after another: a lease must not end because a simulator beside it takes all processors.
	scripts/test.py $(SWIFT) test --skip-build --no-parallel
	Fuzzing/short.sh "$$($(SWIFT) build --show-bin-path)"

test-long:
	@scripts/setup.sh build test
	$(SWIFT) build --build-tests
	STILLPOINT_LONG_TESTS=1 $(SWIFT) test --skip-build --no-parallel --filter KVMPostgreSQL

lint:
	$(SWIFT) format lint --strict --recursive --parallel $(SOURCES)

format:
	$(SWIFT) format --in-place --recursive --parallel $(SOURCES)

simulate: setup
	@SEEDS=$(SEEDS) SEED=$(SEED) FIRST_SEED=$(FIRST_SEED) MODE=$(MODE) VERBOSE=$(VERBOSE) Simulating/run.sh

bench:
	@scripts/setup.sh build test
	$(SWIFT) build -c release
	@Benchmarks/run.sh "$$($(SWIFT) build -c release --show-bin-path)" $(BENCH)

bench-kvm:
	@scripts/setup.sh build test
	$(SWIFT) build -c release
	@python3 Benchmarks/kvm_bench.py "$$($(SWIFT) build -c release --show-bin-path)" $(KVM_BENCH)

bench-iscsi:
	@scripts/setup.sh build bench-iscsi
	$(SWIFT) build -c release --product stillpoint
	@python3 Benchmarks/iscsi/run.py --stillpoint "$$($(SWIFT) build -c release --show-bin-path)/stillpoint" \
		--cases "$(or $(CASES),.)" --rounds $(or $(ROUNDS),3) --seconds $(or $(SECONDS_EACH),1.5)

sanitize: setup
	@Sanitizing/run.sh

fuzz: setup
	@cd Fuzzing && FUZZ_SECONDS=$(FUZZ_SECONDS) ./run.sh

clean:
	rm -rf .build .build-* Fuzzing/.build Fuzzing/.build-* Benchmarks/.build Sanitizing/.build-* Simulating/.build
