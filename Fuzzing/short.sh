#!/usr/bin/env bash
# short.sh BIN_PATH: runs each fuzzer over its corpus and then on for FUZZ_SECONDS (default 3); a part of `make test`.
#
# run.sh builds everything that the fuzzers stand on a second time, optimized and instrumented: minutes. Here only our
# own rooms are, over the libraries that the tests were just built with (BIN_PATH is `swift build --show-bin-path`):
# that takes about a minute. A crash, a time-out or too much memory fails, with its input in .build/.
set -euo pipefail
cd "$(dirname "$0")"
libraries=$1
seconds=${FUZZ_SECONDS:-3}
export SWIFT_BACKTRACE=enable=no

skip() { echo "fuzzing skipped: $*"; exit 0; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo '@_cdecl("LLVMFuzzerTestOneInput") public func fuzz(_ start: UnsafePointer<UInt8>, _ count: Int) -> Int32 { 0 }' \
    > "$work/probe.swift"
swiftc -sanitize=fuzzer -parse-as-library -o "$work/probe" "$work/probe.swift" 2> "$work/log" ||
    skip "this toolchain does not link libFuzzer: $(tail -1 "$work/log")"
command -v ar > /dev/null || skip "there is no ar (binutils)"
[ -d "$libraries/Modules" ] || skip "$libraries has no Modules; build the tests first"

flags=(-swift-version 6 -enable-upcoming-feature ExistentialAny -enable-upcoming-feature MemberImportVisibility
    -enable-upcoming-feature InternalImportsByDefault -enable-testing -parse-as-library -sanitize=fuzzer -O
    -whole-module-optimization -I "$work" -I "$libraries/Modules")
sources=../.build/checkouts
for map in "$libraries"/*.build/module.modulemap \
    "$sources"/swift-{nio,crypto,atomics}/Sources/*/include/module.modulemap; do
    flags+=(-Xcc "-fmodule-map-file=$map")
done

# Of the libraries, what is asked for.
ours="$(ls Product | paste -sd '|')|[A-Za-z]*Tests|stillpoint[^/]*|Simulation|TestInitiator"
find -H "$libraries" -path '*.build/*' -name '*.o' | grep -Ev "/($ours)\.build/" > "$work/objects"
find -H "$libraries/CLinux.build" -name '*.o' >> "$work/objects"
xargs -d '\n' ar qcT "$work/libraries.a" < "$work/objects"
cat > "$work/probe.swift" << 'SWIFT'
import Crypto
import Logging
import NIOPosix
@_cdecl("LLVMFuzzerTestOneInput") public func fuzz(_ start: UnsafePointer<UInt8>, _ count: Int) -> Int32 {
    _ = (SHA256.byteCount, Logger(label: ""), MultiThreadedEventLoopGroup.self)
    return 0
}
SWIFT
swiftc "${flags[@]}" -o "$work/probe" "$work/probe.swift" "$work/libraries.a" 2> "$work/log" ||
    skip "the libraries of $libraries do not link: $(grep -m 1 error "$work/log")"

# A room of ours, instrumented.
room() {
    local sources
    mapfile -t sources < <(find -H "Product/$1" -name '*.swift' | sort)
    swiftc "${flags[@]}" -module-name "$1" -emit-module -emit-module-path "$work/$1.swiftmodule" -emit-object \
        -o "$work/$1.o" "${sources[@]}"
}
fuzzer() {
    local name=$1; shift
    swiftc "${flags[@]}" -module-name "Fuzz$name" -o "$work/Fuzz$name" "$name"/*.swift "${@/#/$work/}" \
        "$work/libraries.a"
    mkdir -p "$work/corpus/$name"
    "$work/Fuzz$name" -seed=7143 -max_total_time="$seconds" -max_len=16384 -rss_limit_mb=2048 -timeout=20 -verbosity=0 \
        -print_final_stats=1 -artifact_prefix="../.build/crash-$name-" "$work/corpus/$name" "Corpus/$name" \
        > "$work/$name.log" 2>&1 || {
        cat "$work/$name.log"
        echo "fuzzer $name failed; its input is in .build/crash-$name-…" >&2
        exit 1
    }
    echo "fuzzer $name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$work/$name.log") inputs"
}
room BlockIO
# Beside the rest: most of the time goes into the compiler.
(
    room BlockStore
    fuzzer Stream BlockStore.o BlockIO.o
) & store=$!
room SCSI
room ISCSI & iscsi=$!
for name in Commands Lists; do fuzzer "$name" SCSI.o BlockIO.o; done
wait $iscsi
for name in Session Login Values; do fuzzer "$name" ISCSI.o SCSI.o BlockIO.o; done
wait $store
