#!/usr/bin/env bash
# The main job, end to end, on real parts: PostgreSQL on ext4 on an iSCSI LUN of our own target, under pgbench.
# A crash-consistent and an application-consistent snapshot; damage; revert; proof; undo of the revert.
# Usage: scripts/demo.sh BIN_DIRECTORY     (make demo calls it; needs root for mount and losetup)
set -euo pipefail

bin=${1:?usage: scripts/demo.sh BIN_DIRECTORY}
bin=$(cd "$bin" && pwd)
export bin
[ "$(id -u)" = 0 ] || { echo "demo: mounting a file system needs root; run: sudo make demo" >&2; exit 1; }
postgres_bin=$(dirname "$(ls /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)")
scale=${DEMO_SCALE:-10}

work=$(mktemp -d /tmp/stillpoint-demo.XXXXXX)
chmod 0755 "$work"
# Nothing of another node that the caller works with.
unset "${!STILLPOINT_@}"
export STILLPOINT_RUN_DIR=$work/run
mnt=$work/db
data=$mnt/pgdata
node_pid='' agent_pid='' bench_pid='' ledger_pid=''
report=()

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
note() { report+=("$(printf '%-44s %s' "$1" "$2")"); }
stillpoint() { "$bin/stillpoint" "$@"; }
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups env -C / "$@"; }
sql() { as_postgres "$postgres_bin/psql" -h "$work/socket" -p 54329 -d "${db:-bench}" -XAtq -v ON_ERROR_STOP=1 "$@"; }
now_ms() { date +%s%3N; }
# Ctrl-C goes to everything that the terminal runs; the node has to outlive what stands on its LUN.
apart() { exec setsid "$@"; }

postgres_start() {
    as_postgres "$postgres_bin/pg_ctl" -D "$data" -w -t 240 -l "$work/socket/postgres.log" \
        -o "-k $work/socket -p 54329 -c listen_addresses= -c shared_buffers=64MB" start > /dev/null
}
postgres_stop() { as_postgres "$postgres_bin/pg_ctl" -D "$data" -w -t 240 -m "${1:-fast}" stop > /dev/null; }

stop_process() {  # PID: asks, waits up to ten seconds, then insists
    local pid=$1
    [ -n "$pid" ] || return 0
    kill "$pid" 2> /dev/null || return 0
    for _ in $(seq 100); do kill -0 "$pid" 2> /dev/null || return 0; sleep 0.1; done
    kill -9 "$pid" 2> /dev/null || true
}

stop_load() {
    [ -z "$bench_pid" ] || { kill "$bench_pid" 2> /dev/null || true; wait "$bench_pid" 2> /dev/null || true; }
    [ -z "$ledger_pid" ] || { kill "$ledger_pid" 2> /dev/null || true; wait "$ledger_pid" 2> /dev/null || true; }
    bench_pid='' ledger_pid=''
}

cleanup() {
    local status=$?
    trap - EXIT
    # A second Ctrl-C must not cut this short.
    trap '' HUP INT TERM
    set +e
    case $status in
        0) ;;
        129|130|143) echo; echo "demo: interrupted; cleaning up" >&2 ;;
        *) echo; echo "demo: failed (status $status); last lines of the logs:" >&2
            tail -n 15 "$work/node.log" "$work/agent.log" "$work/socket/postgres.log" >&2 2> /dev/null ;;
    esac
    stop_load
    "$bin/stillpoint-agent" thaw --all --run "$work/agent-run" > /dev/null 2>&1
    [ -f "$data/postmaster.pid" ] && postgres_stop immediate 2> /dev/null
    mountpoint -q "$mnt" && { umount "$mnt" || umount -l "$mnt"; }
    for name in db; do stillpoint volume detach "$name" > /dev/null 2>&1; done
    stop_process "$agent_pid"
    stop_process "$node_pid"
    mountpoint -q "$work/agent-run" && umount "$work/agent-run"
    rm -rf "$work"
    exit $status
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

wait_for() {  # DESCRIPTION COMMAND...: up to two minutes
    local what=$1; shift
    for _ in $(seq 1200); do "$@" > /dev/null 2>&1 && return 0; sleep 0.1; done
    echo "demo: waited two minutes for $what" >&2
    return 1
}

free_port() {  # one that the kernel gives to nobody: below those that it takes for connections
    python3 - <<'EOF'
import random, socket
first = int(open("/proc/sys/net/ipv4/ip_local_port_range").read().split()[0])
while True:
    port = random.randrange(10000, max(10001, first))
    with socket.socket() as s:
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            continue
    print(port)
    break
EOF
}

# The four sums that pgbench keeps equal: any transaction torn apart shows here.
invariant() {
    sql -c "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
                   (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)"
}
check_invariant() {
    local sums
    sums=$(invariant)
    IFS='|' read -r accounts tellers branches history <<< "$sums"
    if [ "$accounts" = "$tellers" ] && [ "$tellers" = "$branches" ] && [ "$branches" = "$history" ]; then
        echo "   accounts = tellers = branches = history = $accounts"
    else
        echo "demo: pgbench's invariant is broken: $sums" >&2
        return 1
    fi
}

# Commits one number after another and writes down each one that the server acknowledged.
ledger() {
    local n=0
    while :; do
        n=$((n + 1))
        sql -c "INSERT INTO ledger VALUES ($n)" > /dev/null 2>&1 || return 0
        echo "$n" >> "$work/acknowledged"
    done
}
start_load() {
    as_postgres "$postgres_bin/pgbench" -h "$work/socket" -p 54329 -n -c 4 -j 2 -T 3600 bench > "$work/pgbench.log" 2>&1 &
    bench_pid=$!
    : > "$work/acknowledged"
    ledger &
    ledger_pid=$!
}

say "A storage node, an agent, a volume"
install -d -m 0755 "$work/run" "$mnt" "$work/agent-state" "$work/agent-run"
install -d -m 0700 -o postgres -g postgres "$work/socket"
mount -t tmpfs -o size=16m,mode=0700 tmpfs "$work/agent-run"
apart "$bin/stillpoint" serve --data "$work/data" --iscsi-listen 127.0.0.1:0 --api-listen 127.0.0.1:0 > "$work/node.log" 2>&1 &
node_pid=$!
wait_for "the node" grep -q "^iscsi " "$work/node.log"
wait_for "the node" stillpoint status
sed -n '/^api \|^iscsi /p' "$work/node.log"

agent_port=$(free_port)
api=$(sed -n 's/^api //p' "$work/node.log" | head -n 1)
stillpoint agent token demo-host -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)["token"])' \
    | "$bin/stillpoint-agent" enroll --node "$api" --token-file - --address "127.0.0.1:$agent_port" --state "$work/agent-state"
apart "$bin/stillpoint-agent" serve --listen "127.0.0.1:$agent_port" --state "$work/agent-state" --run "$work/agent-run" \
    --plugins "$bin" > "$work/agent.log" 2>&1 &
agent_pid=$!

stillpoint volume create db --size 4GiB
device=$(stillpoint volume attach db -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)["device"])')
echo "db is $device on this host"
mkfs.ext4 -q -E nodiscard "$device"
mount "$device" "$mnt"

say "PostgreSQL on it, with pgbench running (scale $scale)"
install -d -m 0700 -o postgres -g postgres "$data"
as_postgres "$postgres_bin/initdb" -D "$data" -A trust --data-checksums > /dev/null
postgres_start
db=postgres sql -c 'CREATE DATABASE bench' > /dev/null
as_postgres "$postgres_bin/pgbench" -h "$work/socket" -p 54329 -i -q -s "$scale" bench > /dev/null 2>&1
sql -c 'CREATE TABLE ledger (n bigint PRIMARY KEY)'
wait_for "the agent" bash -c '"$bin/stillpoint" agent show demo-host -o json | grep -q postgresql'
stillpoint agent show demo-host
start_load
wait_for "the first transactions" test -s "$work/acknowledged"
sleep 3

say "A crash-consistent snapshot"
t=$(now_ms)
stillpoint snapshot create db --name crash
note "crash-consistent snapshot" "$(($(now_ms) - t)) ms"
sleep 1

say "An application-consistent snapshot"
acknowledged_before=$(tail -n 1 "$work/acknowledged" || echo 0)
t=$(now_ms)
stillpoint snapshot create db --consistency application --name application
note "application-consistent snapshot" "$(($(now_ms) - t)) ms"
stillpoint snapshot show application
note "achieved consistency" "$(stillpoint snapshot show application -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)["achievedConsistency"])')"
note "longest quiet time" "$(stillpoint snapshot show application -o json | python3 -c 'import json, sys; print("%.0f ms" % (1000 * json.load(sys.stdin)["quietSeconds"]))')"
sleep 1

say "Damage: the tables are dropped"
stop_load
after=$(tail -n 1 "$work/acknowledged")
sql -c 'DROP TABLE pgbench_accounts, pgbench_history, ledger'
sql -c 'CHECKPOINT'

say "A revert while the volume is in use is refused"
if stillpoint volume revert db --to application; then
    echo "demo: the revert should have been refused" >&2
    exit 1
fi

say "Revert, driven through the agent: stop PostgreSQL, unmount, revert, mount, start"
t=$(now_ms)
stillpoint volume revert db --to application --drive
note "revert, with PostgreSQL stopped and started" "$(($(now_ms) - t)) ms"
mountpoint -q "$mnt"

check_invariant
last=$(sql -c 'SELECT coalesce(max(n), 0) FROM ledger')
count=$(sql -c 'SELECT count(*) FROM ledger')
echo "   acknowledged before the snapshot was asked for: $acknowledged_before; in the snapshot: $last; written in all: $after"
[ "$last" -ge "$acknowledged_before" ] && [ "$count" = "$last" ] || { echo "demo: acknowledged transactions are missing" >&2; exit 1; }
sql -c 'CREATE EXTENSION IF NOT EXISTS amcheck' && as_postgres "$postgres_bin/pg_amcheck" -h "$work/socket" -p 54329 bench
note "transactions acknowledged before, found" "$acknowledged_before of $acknowledged_before"

say "Undo of the revert: the damage is back"
stillpoint volume revert db --undo --drive
[ "$(sql -c "SELECT to_regclass('pgbench_accounts') IS NULL")" = t ] || { echo "demo: the undo did not bring the damage back" >&2; exit 1; }
echo "   pgbench_accounts is gone again, as it was before the revert"
postgres_stop
umount "$mnt"
stillpoint volume detach db
stillpoint snapshot list db

say "Report"
printf '   %s\n' "${report[@]}"
