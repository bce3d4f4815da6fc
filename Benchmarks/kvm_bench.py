"""How long guests are quiet, as a writer inside each of them sees it: the longest time between two durable writes.

Three ways to take a snapshot of 1, 2, 4 and 8 guests are compared on the same guests:
  ours      one snapshot of all volumes, guests frozen by their agents, all at the same time
  serial    what the old plug-ins do: each guest suspended in turn, one snapshot, each resumed in turn, with virsh
  qcow2     virsh snapshot-create-as --quiesce --disk-only of a local image, one guest after the other
Usage: Benchmarks/kvm_bench.py BIN_DIRECTORY [GUESTS]
"""

import base64
import concurrent.futures
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid

from node_bench import Node

ROUNDS = 5
SCRIPTS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scripts")
PAUSE_MICROSECONDS = 2000


class Host:
    """A private libvirtd with an agent of ours in its mount namespace."""

    def __init__(self, node):
        self.node = node
        self.image = subprocess.run([SCRIPTS + "/build-guest.sh"], check=True, capture_output=True,
                                    text=True).stdout.strip()
        self.folder = tempfile.mkdtemp(prefix="sp-b", dir="/tmp")
        self.shm = tempfile.mkdtemp(prefix="sp-b", dir="/dev/shm")
        self.daemon = SCRIPTS + "/private-libvirtd.sh"
        with open(self.folder + "/start.log", "w") as log:
            subprocess.run([self.daemon, "start", self.folder, self.image + "/cache"], check=True, stdout=log,
                           stderr=log, stdin=subprocess.DEVNULL, env=dict(os.environ, PRIVATE_LIBVIRTD_OWNER=str(os.getpid())))
        self.start_agent()

    def start_agent(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = "127.0.0.1:%d" % probe.getsockname()[1]
        token = self.node.call("POST", "/v1/agents/tokens", {"name": "bench"})["token"]
        with open(self.shm + "/token", "w") as file:
            file.write(token)
        inside = [self.daemon, "exec", self.folder, self.node.bin + "/stillpoint-agent"]
        state = ["--state", self.shm + "/state"]
        subprocess.run(inside + ["enroll", "--node", self.node.api, "--token-file", self.shm + "/token", "--address",
                                 address] + state, check=True, stdout=subprocess.DEVNULL)
        self.log = open(self.folder + "/agent.log", "w")
        self.agent = subprocess.Popen(inside + ["serve", "--listen", address, "--run", self.shm + "/run"] + state,
                                      stdout=self.log, stderr=self.log)
        for _ in range(100):
            if self.node.call("GET", "/v1/agents/bench")["isReachable"]:
                return
            time.sleep(0.1)
        raise SystemExit("the agent did not start:\n" + open(self.folder + "/agent.log").read())

    def virsh(self, *arguments):
        return subprocess.run([self.daemon, "exec", self.folder, "virsh", "-q"] + list(arguments), check=True,
                              capture_output=True, text=True).stdout

    def stop(self):
        self.agent.terminate()
        self.agent.wait(20)
        subprocess.run([self.daemon, "stop", self.folder])
        for folder in (self.folder, self.shm):
            shutil.rmtree(folder, ignore_errors=True)


class Guest:
    def __init__(self, host, number):
        self.host, self.name, self.volume = host, "b%d" % number, "bench-%d" % number
        url = host.node.volume(self.volume, 64 << 20)
        portal, iqn = url[len("iscsi://"):].split("/")[:2]
        self.local = "%s/%s.qcow2" % (host.folder, self.name)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.local, "64M"], check=True)
        address, port = portal.rsplit(":", 1)
        xml = """<domain type='qemu'><name>%s</name><uuid>%s</uuid><memory unit='MiB'>208</memory><vcpu>1</vcpu>
            <os><type arch='x86_64' machine='q35'>hvm</type><kernel>%s/vmlinux</kernel><initrd>%s/initrd</initrd>
            <cmdline>console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off</cmdline></os><features><acpi/></features>
            <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
            <disk type='network' device='disk'><driver name='qemu' type='raw' cache='none'/>
            <source protocol='iscsi' name='%s/0'><host name='%s' port='%s'/></source>
            <target dev='vda' bus='virtio'/></disk>
            <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/>
            <target dev='vdb' bus='virtio'/></disk><controller type='pci' model='pcie-root'/>%s
            <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
            <memballoon model='none'/></devices></domain>""" % (
                self.name, uuid.uuid4(), host.image, host.image, iqn, address, port, self.local,
                "<controller type='pci' model='pcie-root-port'/>" * 6)
        path = "%s/%s.xml" % (host.folder, self.name)
        with open(path, "w") as file:
            file.write(xml)
        host.virsh("define", path)
        host.virsh("start", self.name)

    def ready(self):
        for _ in range(600):
            try:
                self.ask("guest-ping")
                break
            except subprocess.CalledProcessError:
                time.sleep(0.5)
        self.run("for d in vda vdb; do mkfs.ext4 -q /dev/$d; mkdir -p /mnt/$d; mount /dev/$d /mnt/$d; done")

    def ask(self, command, **arguments):
        request = json.dumps({"execute": command, "arguments": arguments})
        return json.loads(self.host.virsh("qemu-agent-command", self.name, request))["return"]

    def run(self, command):
        pid = self.ask("guest-exec", path="/bin/sh", arg=["-c", command], **{"capture-output": True})["pid"]
        while True:
            state = self.ask("guest-exec-status", pid=pid)
            if state["exited"]:
                return base64.b64decode(state.get("out-data", "")).decode()
            time.sleep(0.1)

    def start_writer(self, disk):
        self.run("killall writer 2>/dev/null; rm -f /run/w; setsid writer -p %d /run/w /mnt/%s/n "
                 "</dev/null >/dev/null 2>&1 & until [ -s /run/w ]; do sleep 0.05; done" % (PAUSE_MICROSECONDS, disk))

    def longest_seconds(self):
        return float(self.run("cat /run/w; killall writer").split()[1])


def each(guests, body):
    with concurrent.futures.ThreadPoolExecutor(len(guests)) as pool:
        return list(pool.map(body, guests))


class Ways:
    def __init__(self, host):
        self.host, self.count = host, 0
        self.held = []

    def snapshot(self, guests, consistency):
        self.count += 1
        name = "bench-%d" % self.count
        node = self.host.node
        job = node.call("POST", "/v1/snapshots", {"volumes": [g.volume for g in guests], "name": name,
                                                  "consistency": consistency})
        while job["state"] not in ("succeeded", "failed"):
            time.sleep(0.01)
            job = node.call("GET", "/v1/jobs/" + job["id"])
        if job["state"] == "failed":
            raise SystemExit("the snapshot failed: %s" % job.get("failure"))
        return node.call("GET", "/v1/snapshots/" + name)

    def nothing(self, guests):
        time.sleep(1)

    def ours(self, guests):
        made = self.snapshot(guests, "fileSystem")
        self.held.append(max(member["quietSeconds"] for member in made["evidence"]["members"]))

    def serial(self, guests):
        for guest in guests:
            self.host.virsh("suspend", guest.name)
        self.snapshot(guests, "crash")
        for guest in guests:
            self.host.virsh("resume", guest.name)

    def qcow2(self, guests):
        self.count += 1
        for guest in guests:
            self.host.virsh("snapshot-create-as", guest.name, "q%d" % self.count, "--quiesce", "--disk-only",
                            "--no-metadata", "--diskspec", "vda,snapshot=no", "--diskspec",
                            "vdb,file=%s.%d" % (guest.local, self.count))


def measure(guests, way, disk):
    """Milliseconds: the median over the rounds of the longest quiet time of any guest."""
    found = []
    for _ in range(ROUNDS):
        each(guests, lambda guest: guest.start_writer(disk))
        way(guests)
        found.append(max(each(guests, Guest.longest_seconds)) * 1000)
    return statistics.median(found)


def main():
    bin_directory = sys.argv[1]
    most = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    node = Node(bin_directory)
    host = None
    try:
        host = Host(node)
        guests = [Guest(host, number) for number in range(1, most + 1)]
        each(guests, Guest.ready)
        ways = Ways(host)
        print("longest time without a durable write inside a guest (median of %d, ms)" % ROUNDS)
        print("  guests    undisturbed       ours     serial      qcow2   ours/1   ours/serial")
        first = None
        for count in [n for n in (1, 2, 4, 8, 16) if n <= most]:
            some = guests[:count]
            base, ours, serial = (measure(some, way, "vda") for way in (ways.nothing, ways.ours, ways.serial))
            qcow2 = measure(some, ways.qcow2, "vdb")
            first = first or ours
            print("  %6d %14.0f %10.0f %10.0f %10.0f %8.2f %13.2f" % (
                count, base, ours, serial, qcow2, ours / first, ours / serial), flush=True)
        held = sorted(ways.held)
        print("ours, freeze acknowledged to release begun: median %.0f ms, longest of %d %.0f ms" % (
            statistics.median(held) * 1000, len(held), held[-1] * 1000))
    finally:
        if host:
            host.stop()
        node.stop()


if __name__ == "__main__":
    main()
