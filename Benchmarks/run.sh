#!/usr/bin/env bash
# `make bench`: the store alone and beside its peers, then the whole node from outside.
# Usage: Benchmarks/run.sh BIN_DIRECTORY [SECTION...]; sections are those of store_bench.py, and `node`.
set -euo pipefail
bin=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
sections=("$@")
[ ${#sections[@]} -gt 0 ] || sections=(rates direct amplification snapshots pause times peers node)
store=()
for section in "${sections[@]}"; do [ "$section" = node ] || store+=("$section"); done
if [ ${#store[@]} -gt 0 ]; then
    (cd "$here" && swift build -c release)
    python3 "$here/store_bench.py" "$here/.build/release/store-bench" "${store[@]}" \
        --rounds "${ROUNDS:-5}" --seconds "${SECONDS_EACH:-2}" --directory "${BENCH_DIRECTORY:-/var/tmp}"
fi
case " ${sections[*]} " in *" node "*) python3 "$here/node_bench.py" "$bin" ;; esac
