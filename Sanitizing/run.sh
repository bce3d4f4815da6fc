#!/bin/sh
# Runs the tests of the SCSI and iSCSI rooms, and those of the store that use several threads, under each sanitizer;
# a report of one makes the run fail. SANITIZERS chooses (thread, address), SANITIZE_SECONDS bounds each run of tests.
set -eu
cd "$(dirname "$0")"
export SWIFT_BACKTRACE=enable=no
tests='SCSITests|ISCSITests|BlockStoreTests.(ConcurrencyTests|AtomicityTests|VolatileLogTests)'

# Runs a program under the thread sanitizer. $1: clean or race, what it must find.
expect() {
    wanted=$1
    shift
    if TSAN_OPTIONS="halt_on_error=1 exitcode=66" "$@" > /dev/null 2>&1; then found=clean; else found=race; fi
    [ "$found" = "$wanted" ] || { echo "sanitize: $* is $found, but should be $wanted" >&2; return 1; }
}

for sanitizer in ${SANITIZERS:-thread address}; do
    echo "== $sanitizer sanitizer"
    scratch=.build-$sanitizer
    swift build --build-tests --sanitize="$sanitizer" --scratch-path "$scratch"
    if [ "$sanitizer" = thread ]; then
        # Swift's Mutex when threads wait for it: see MutexEdges/mutex_edges.c.
        clang -fsanitize=thread -c MutexEdges/mutex_edges.c -o "$scratch/edges.o"
        compile="swiftc -swift-version 6 -parse-as-library -sanitize=thread Contention.swift"
        $compile -o "$scratch/contention"
        $compile "$scratch/edges.o" -o "$scratch/contention-with-edges"
        expect clean "$scratch/contention-with-edges"
        expect race "$scratch/contention-with-edges" race
        expect race "$scratch/contention" || echo "sanitize: this toolchain may not need MutexEdges any more"
    fi
    # Leaks are what the Swift runtime keeps for ever; detect_stack_use_after_return needs a shadow stack per thread.
    TSAN_OPTIONS="halt_on_error=1 exitcode=66" ASAN_OPTIONS="detect_leaks=0" \
        timeout "${SANITIZE_SECONDS:-1800}" swift test --skip-build --no-parallel --sanitize="$sanitizer" \
        --scratch-path "$scratch" --filter "$tests"
done
