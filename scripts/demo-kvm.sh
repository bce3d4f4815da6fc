#!/usr/bin/env bash
# Virtual machines, end to end, on real parts: guests under a libvirtd of the demo's own, their disks on an iSCSI target of ours.
# A snapshot of all of them in one cut; one guest is deleted, and comes back; another is restored beside itself.
# Usage: scripts/demo-kvm.sh BIN_DIRECTORY     (make demo-kvm calls it; needs root)
set -euo pipefail

bin=$(realpath -e -- "${1:?usage: scripts/demo-kvm.sh BIN_DIRECTORY}")
[ "$(id -u)" = 0 ] || { echo "demo-kvm: a libvirtd of its own needs root; run: sudo make demo-kvm" >&2; exit 1; }
here=$(cd "$(dirname "$0")" && pwd)
count=${DEMO_GUESTS:-3}

work=$(mktemp -d /tmp/sp-demo.XXXX)
chmod 0755 "$work"
export STILLPOINT_RUN_DIR=$work/run
host=$work/kvm
node_pid='' agent_pid=''
report=()

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
note() { report+=("$(printf '%-52s %s' "$1" "$2")"); }
now_ms() { date +%s%3N; }
stillpoint() { "$bin/stillpoint" "$@"; }
on_host() { "$here/private-libvirtd.sh" exec "$host" "$@"; }
# Without a terminal: virsh would start polkit's agent on it, which has nothing to do here and says so each time.
virsh() { on_host setsid --wait virsh -q "$@"; }
json() { python3 -c "import json, sys; print($1)"; }

stop_process() {  # PID: asks, waits up to ten seconds, then insists
    [ -n "$1" ] || return 0
    kill "$1" 2> /dev/null || return 0
    for _ in $(seq 100); do kill -0 "$1" 2> /dev/null || return 0; sleep 0.1; done
    kill -9 "$1" 2> /dev/null || true
}

cleanup() {
    local status=$?
    trap - EXIT INT TERM
    set +e
    # Somebody who has interrupted it knows why.
    case $status in 0|130|143) echo;; *) echo; echo "demo-kvm: failed (status $status); last lines of the logs:" >&2
        tail -n 15 "$work/node.log" "$work/agent.log" "$host/libvirtd.log" >&2 2> /dev/null;; esac
    stop_process "$agent_pid"
    "$here/private-libvirtd.sh" stop "$host" 2> /dev/null
    stop_process "$node_pid"
    mountpoint -q "$work/agent-run" && umount "$work/agent-run"
    rm -rf "$work"
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

wait_for() {  # DESCRIPTION COMMAND...: up to five minutes
    local what=$1; shift
    for _ in $(seq 1500); do "$@" > /dev/null 2>&1 && return 0; sleep 0.2; done
    echo "demo-kvm: waited five minutes for $what" >&2
    return 1
}

# Runs a shell command in a guest, through its agent; prints its output.
in_guest() {
    local guest=$1 pid answer
    pid=$(virsh qemu-agent-command "$guest" "$(python3 -c 'import json, sys
print(json.dumps({"execute": "guest-exec", "arguments": {"path": "/bin/sh", "arg": ["-c", sys.argv[1]], "capture-output": True}}))' "$2")" \
        | json 'json.load(sys.stdin)["return"]["pid"]')
    for _ in $(seq 100); do
        answer=$(virsh qemu-agent-command "$guest" "{\"execute\":\"guest-exec-status\",\"arguments\":{\"pid\":$pid}}")
        case $answer in *'"exited":true'*) break;; esac
        sleep 0.1
    done
    echo "$answer" | python3 -c 'import base64, json, sys
print(base64.b64decode(json.load(sys.stdin)["return"].get("out-data", "")).decode(), end="")'
}
answers() { virsh qemu-agent-command "$1" '{"execute":"guest-ping"}'; }

say "A storage node, and a host of virtual machines with an agent"
image=$("$here/build-guest.sh")
install -d -m 0755 "$work/run" "$work/agent-state" "$work/agent-run"
mount -t tmpfs -o size=16m,mode=0700 tmpfs "$work/agent-run"
"$bin/stillpoint" serve --data "$work/data" --iscsi-listen 127.0.0.1:0 --api-listen 127.0.0.1:0 > "$work/node.log" 2>&1 &
node_pid=$!
wait_for "the node" grep -q "^iscsi " "$work/node.log"
wait_for "the node" stillpoint status
sed -n '/^api \|^iscsi /p' "$work/node.log"
api=$(sed -n 's/^api //p' "$work/node.log" | head -n 1)
portal=$(sed -n 's/^iscsi //p' "$work/node.log" | head -n 1)
PRIVATE_LIBVIRTD_OWNER=$$ "$here/private-libvirtd.sh" start "$host" "$image/cache"
agent_port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
stillpoint agent token kvm-host -o json | json 'json.load(sys.stdin)["token"]' \
    | "$bin/stillpoint-agent" enroll --node "$api" --token-file - --address "127.0.0.1:$agent_port" --state "$work/agent-state"
on_host "$bin/stillpoint-agent" serve --listen "127.0.0.1:$agent_port" --state "$work/agent-state" \
    --run "$work/agent-run" --plugins "$bin" > "$work/agent.log" 2>&1 &
agent_pid=$!

say "$count guests, each with a volume as its disk"
names=() volumes=()
for n in $(seq "$count"); do
    name=vm$n
    uuid=$(cat /proc/sys/kernel/random/uuid)
    names+=("$name") volumes+=("$name-data")
    stillpoint volume create "$name-data" --size 64MiB > /dev/null
    iqn=$(stillpoint volume show "$name-data" -o json | json 'json.load(sys.stdin)["exports"][0]["iqn"]')
    # An empty file system, written over iSCSI.
    rm -f "$work/fresh.img"  # or mkfs asks, on a terminal, whether it may overwrite what is in it
    truncate -s 64M "$work/fresh.img" && mkfs.ext4 -q -F -L data "$work/fresh.img"
    stillpoint target allow "$iqn" --initiator iqn.2026-11.demo:fill > /dev/null
    qemu-img convert -n -f raw "$work/fresh.img" --target-image-opts \
        "driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=$portal,file.target=$iqn,file.lun=0,file.initiator-name=iqn.2026-11.demo:fill"
    stillpoint target deny "$iqn" --initiator iqn.2026-11.demo:fill > /dev/null
    stillpoint target allow "$iqn" --initiator "iqn.2008-11.org.linux-kvm:$uuid" > /dev/null
    cat > "$work/$name.xml" << XML
<domain type='qemu'>
  <name>$name</name><uuid>$uuid</uuid><memory unit='MiB'>208</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type><kernel>$image/vmlinux</kernel><initrd>$image/initrd</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off</cmdline></os>
  <features><acpi/></features><on_reboot>destroy</on_reboot>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='network' device='disk'><driver name='qemu' type='raw' cache='none' discard='unmap'/>
      <source protocol='iscsi' name='$iqn/0'><host name='${portal%:*}' port='${portal##*:}'/></source>
      <target dev='vda' bus='virtio'/><serial>$name</serial></disk>
    <serial type='file'><source path='$work/$name.console'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel><memballoon model='none'/>
  </devices>
</domain>
XML
    virsh define "$work/$name.xml"
    virsh start "$name"
done
for name in "${names[@]}"; do wait_for "$name" answers "$name"; done
for name in "${names[@]}"; do in_guest "$name" "echo the data of $name > /mnt/data/file; sync"; done
wait_for "the agent" bash -c "'$bin/stillpoint' guest list -o json | grep -q vm$count"
virsh list --all
stillpoint guest list

say "One snapshot of all guests, frozen through their guest agents all at once"
for name in "${names[@]}"; do in_guest "$name" "setsid writer /run/writer /mnt/data/numbers < /dev/null > /dev/null 2>&1 &" ; done
sleep 1
t=$(now_ms)
stillpoint snapshot create "${volumes[@]}" --consistency file-system --name all --lease 30
note "snapshot of $count guests" "$(($(now_ms) - t)) ms"
note "longest quiet time" "$(stillpoint snapshot show all -o json | json '"%.0f ms" % (1000 * json.load(sys.stdin)["quietSeconds"])')"
for name in "${names[@]}"; do in_guest "$name" "killall writer"; done

say "vm1 is deleted: turned off, undefined"
in_guest vm1 "echo damage > /mnt/data/file; sync"
virsh destroy vm1
virsh undefine vm1
virsh list --all
stillpoint guest list

say "What a restore would do, and the restore"
stillpoint guest restore vm1 --dry-run
t=$(now_ms)
stillpoint guest restore vm1
note "restore of the deleted guest" "$(($(now_ms) - t)) ms"
wait_for vm1 answers vm1
[ "$(in_guest vm1 'cat /mnt/data/file')" = "the data of vm1" ] || { echo "demo-kvm: vm1 has other data" >&2; exit 1; }
echo "   vm1 says: $(in_guest vm1 'cat /mnt/data/file'); last number written: $(in_guest vm1 'tail -n 1 /mnt/data/numbers')"

say "vm2 once more, beside the one that runs"
t=$(now_ms)
stillpoint guest restore vm2 --from all --beside vm2-yesterday
note "restore beside the original" "$(($(now_ms) - t)) ms"
wait_for vm2-yesterday answers vm2-yesterday
echo "   vm2-yesterday says: $(in_guest vm2-yesterday 'cat /mnt/data/file')"
virsh list --all

say "Undo: the guest beside is gone again, and its clone with it"
stillpoint guest restore vm2-yesterday --undo
virsh list --all
stillpoint clone list

say "Report"
printf '   %s\n' "${report[@]}"
