#!/usr/bin/env bash
# run.sh: the simulator's histories, optimized, four for each of SEEDS seeds (default 1000) from FIRST_SEED (default 1) on,
# and each planted bug, which must be found. MODE=crashes, kills, errors or lies runs that kind alone. Failing seeds are
# listed at the end with the command that replays each, also one in which the store trapped or went on for ever: SEED=N
# prints its histories. Exit code 0 only where nothing failed.
# `make simulate` calls it; docs/simulator.md says what is simulated.
set -euo pipefail
cd "$(dirname "$0")"
swift=${SWIFT:-swift}
test=../scripts/test.py
tests='SimulationTests|ReplayTests|PlantedBugTests'
for name in SEED SEEDS FIRST_SEED; do
    if ! [[ ${!name:-0} =~ ^[0-9]{1,20}$ ]]; then
        echo "$name=${!name} is not a number from 0 to 18446744073709551615" >&2
        exit 2
    fi
done
case ${MODE:-} in
    '') ;;
    crashes | kills | errors | lies) export STILLPOINT_SIM_MODE=$MODE tests=SimulationTests ;;
    *) echo "MODE=$MODE is none of crashes, kills, errors, lies" >&2; exit 2 ;;
esac
if [ -n "${SEED:-}" ]; then
    export STILLPOINT_SIM_SEED=$SEED
    tests=SimulationTests
else
    export STILLPOINT_SIM_SEEDS=${SEEDS:-1000} STILLPOINT_SIM_FIRST_SEED=${FIRST_SEED:-1}
fi
if [ -n "${VERBOSE:-}" ]; then export STILLPOINT_SIM_VERBOSE=1; fi
"$test" "$swift" build -c release --build-tests
failed=$(mktemp)
trap 'rm -f "$failed"' EXIT
export STILLPOINT_SIM_FAILED=$failed
status=0
# A replay prints one history after the other.
"$test" "$swift" test -c release --skip-build ${SEED:+--no-parallel} --filter "$tests" || status=$?
if [ -s "$failed" ]; then
    echo "Failing histories, and what replays each:"
    sort -uV "$failed" | sed 's/^/  /'
    [ "$status" != 0 ] || status=1
fi
exit "$status"
