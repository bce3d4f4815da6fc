#!/usr/bin/env bash
# A libvirtd of one's own, for the tests and `make demo-kvm`, beside one that the machine may run for real:
#   private-libvirtd.sh start DIRECTORY [CACHE]   a mount namespace in which libvirt's directories are DIRECTORY's, and the daemon
#   private-libvirtd.sh daemon DIRECTORY          the daemon again, after it was stopped or killed
#   private-libvirtd.sh exec DIRECTORY COMMAND…   runs a command in that namespace: virsh, an agent, mount
#   private-libvirtd.sh stop DIRECTORY            destroys its guests, ends the daemon and whatever else runs in the namespace
# Guests run with QEMU's own emulation of the processor. DIRECTORY must be short: paths of sockets end at 108 bytes.
# With PRIVATE_LIBVIRTD_OWNER=PID in the environment of `start`, everything is stopped, too, when that process has ended.
set -euo pipefail
# Others look through libvirt's directories, and make temporary files, as swtpm under a user of its own does.
umask 022
unset TMPDIR

verb=${1:?usage: private-libvirtd.sh start|daemon|exec|stop DIRECTORY [...]}
dir=${2:?usage: private-libvirtd.sh start|daemon|exec|stop DIRECTORY [...]}
shift 2
[ "$(id -u)" = 0 ] || { echo "private-libvirtd: needs root (mount namespaces)" >&2; exit 1; }

holder() { cat "$dir/holder.pid" 2> /dev/null || true; }
inside() { nsenter --mount="/proc/$(holder)/ns/mnt" --wd=/ -- "$@"; }
alive() { [ -n "$1" ] && kill -0 "$1" 2> /dev/null; }

start_daemon() {
    inside setsid libvirtd -f "$dir/etc/libvirtd.conf" -p "$dir/libvirtd.pid" < /dev/null >> "$dir/libvirtd.log" 2>&1 &
    local child=$! i
    for ((i = 0; i < 1800; i++)); do
        # Without a terminal, on which it would start polkit's agent.
        inside setsid --wait virsh -q -c qemu:///system list --name > /dev/null 2>&1 && return 0
        kill -0 "$child" 2> /dev/null || break
        sleep 0.1
    done
    echo "private-libvirtd: libvirtd did not start; see $dir/libvirtd.log" >&2
    return 1
}

# Everything that still runs in the namespace, the holder last: guests, daemons they left behind, agents.
end_all() {
    local own=$1 signal=$2 pid
    for pid in /proc/[0-9]*; do
        pid=${pid#/proc/}
        [ "$(readlink "/proc/$pid/ns/mnt" 2> /dev/null)" = "$own" ] && [ "$pid" != "$(holder)" ] \
            && kill "-$signal" "$pid" 2> /dev/null
    done
    return 0
}

case $verb in
start)
    cache=${1:-$dir/cache}
    mkdir -p "$dir"/{etc,lib,run,log} "$cache"
    printf '%s\n' 'unix_sock_group = "root"' 'auth_unix_rw = "none"' 'log_outputs = "2:stderr"' 'keepalive_interval = -1' \
        > "$dir/etc/libvirtd.conf"
    printf '%s\n' 'user = "root"' 'group = "root"' 'dynamic_ownership = 0' 'remember_owner = 0' 'security_driver = "none"' \
        'cgroup_controllers = [ ]' 'namespaces = [ ]' 'stdio_handler = "file"' 'max_core = 0' > "$dir/etc/qemu.conf"
    unshare --mount --propagation private setsid bash -c '
        set -e
        dir=$1 cache=$2
        mkdir -p /etc/libvirt /var/lib/libvirt /run/libvirt /var/log/libvirt /var/cache/libvirt
        mount --bind "$dir/etc" /etc/libvirt
        mount --bind "$dir/lib" /var/lib/libvirt
        mount --bind "$dir/run" /run/libvirt
        mount --bind "$dir/log" /var/log/libvirt
        mount --bind "$cache" /var/cache/libvirt
        echo $$ > "$dir/holder.new"
        mv "$dir/holder.new" "$dir/holder.pid"
        exec sleep infinity' holder "$dir" "$cache" < /dev/null > "$dir/holder.log" 2>&1 &
    for ((i = 0; i < 1200; i++)); do [ -s "$dir/holder.pid" ] && break; sleep 0.05; done
    [ -s "$dir/holder.pid" ] || { echo "private-libvirtd: no namespace: $(cat "$dir/holder.log")" >&2; exit 1; }
    if [ -n "${PRIVATE_LIBVIRTD_OWNER:-}" ]; then
        setsid bash -c 'while kill -0 "$1" && kill -0 "$2"; do sleep 1; done 2> /dev/null; exec "$3" stop "$4"' watch \
            "$PRIVATE_LIBVIRTD_OWNER" "$(holder)" "$(realpath "$0")" "$dir" < /dev/null > /dev/null 2>&1 &
    fi
    start_daemon
    ;;
daemon)
    start_daemon
    ;;
exec)
    exec nsenter --mount="/proc/$(holder)/ns/mnt" --wd=/ -- "$@"
    ;;
stop)
    pid=$(holder)
    alive "$pid" || exit 0
    own=$(readlink "/proc/$pid/ns/mnt")
    [ "$own" != "$(readlink /proc/self/ns/mnt)" ] || { echo "private-libvirtd: the namespace is not private" >&2; exit 1; }
    end_all "$own" TERM
    for ((i = 0; i < 30; i++)); do
        [ "$(for p in /proc/[0-9]*; do readlink "$p/ns/mnt" 2> /dev/null; done | grep -cxF "$own")" -le 1 ] && break
        sleep 0.1
    done
    end_all "$own" KILL  # also those that were stopped (SIGSTOP)
    kill -9 "$pid" 2> /dev/null || true
    ;;
*)
    echo "private-libvirtd: unknown verb '$verb'" >&2
    exit 2
    ;;
esac
