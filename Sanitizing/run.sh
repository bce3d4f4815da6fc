#!/bin/sh
# Runs the tests of the SCSI and iSCSI rooms under each sanitizer; a report of one makes the run fail.
set -eu
cd "$(dirname "$0")"
export SWIFT_BACKTRACE=enable=no
for sanitizer in ${SANITIZERS:-thread address}; do
    echo "== $sanitizer sanitizer"
    swift build --build-tests --sanitize="$sanitizer" --scratch-path ".build-$sanitizer"
    # Leaks are what the Swift runtime keeps for ever; detect_stack_use_after_return needs a shadow stack per thread.
    TSAN_OPTIONS="halt_on_error=1 exitcode=66" ASAN_OPTIONS="detect_leaks=0" \
        swift test --skip-build --no-parallel --sanitize="$sanitizer" --scratch-path ".build-$sanitizer"
done
