#!/bin/sh
# Builds and runs each fuzzer for FUZZ_SECONDS (default 60). New inputs go to .build/corpus; a crash stops the run
# with its input in .build/crash-NAME-….
set -eu
cd "$(dirname "$0")"
export SWIFT_BACKTRACE=enable=no
for name in ${FUZZERS:-Session Login Values Commands Lists Stream}; do
    swift build -c release --sanitize=fuzzer --product "Fuzz$name"
    mkdir -p ".build/corpus/$name"
    ".build/release/Fuzz$name" -max_total_time="${FUZZ_SECONDS:-60}" -max_len=16384 -rss_limit_mb=2048 \
        -print_final_stats=1 -artifact_prefix=".build/crash-$name-" ".build/corpus/$name" "Corpus/$name"
done
