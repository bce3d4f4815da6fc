#!/usr/bin/env bash
# run.sh: the simulator's histories, optimized, three for each of SEEDS seeds (default 1000) from FIRST_SEED (default 1) on,
# and each planted bug, which must be found. A failure prints its seed; SEED=N replays that one. `make simulate` calls it.
set -euo pipefail
cd "$(dirname "$0")"
swift=${SWIFT:-swift}
test=../scripts/test.py
tests='SimulationTests|PlantedBugTests'
if [ -n "${SEED:-}" ]; then
    export STILLPOINT_SIM_SEED=$SEED
    tests=SimulationTests
else
    export STILLPOINT_SIM_SEEDS=${SEEDS:-1000} STILLPOINT_SIM_FIRST_SEED=${FIRST_SEED:-1}
fi
"$test" "$swift" build -c release --build-tests
"$test" "$swift" test -c release --skip-build --filter "$tests"
