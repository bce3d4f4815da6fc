"""How long guests are quiet, as a writer inside each of them sees it: the longest time between two durable writes.

Four ways to take a snapshot of 1, 2, 4 and 8 guests are compared on the same guests, by turns:
  ours      one snapshot of all volumes, guests frozen by their agents, all at the same time
  paused    ours, in the mode `pause`: like with like beside `serial`
  serial    what the old plug-ins do: each guest suspended in turn, one snapshot, each resumed in turn, with virsh
A suspended guest's clock stands still, so that its writer sees nothing of it: of these two it is the time between libvirt's
events, by the host's clock.
  qcow2     virsh snapshot-create-as --quiesce --disk-only of a local image, one guest after the other
Then, without the writers' figures, snapshots in a row: how long it takes from the last guest's acknowledgement of its
freeze to the first request to thaw one, which is the part that is not the guests'.

Usage: Benchmarks/kvm_bench.py BIN_DIRECTORY [--guests 1,2,4,8] [--rounds 3] [--holds 25] [--ways undisturbed,ours,paused,serial,qcow2]
                              [--pause MILLISECONDS] [--seconds 280] [--raw FILE]
--pause is how long each writer waits between two writes: so much of a quiet time it may miss, and the less it waits, the more
its own load is measured.
--seconds ends it in time: what is measured until then is printed. Guests run with QEMU's emulation of the processor (TCG),
where many guests share few cores: compare within a column's own count of guests, and look at "undisturbed" first.
"""

import argparse
import base64
import concurrent.futures
import datetime
import json
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
import uuid

from node_bench import Node

SCRIPTS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scripts")
QUIET_BEFORE_SECONDS = 1
LEASE_SECONDS = 30


class Host:
    """A private libvirtd with an agent of ours in its mount namespace."""

    def __init__(self, node):
        self.node, self.agent, self.mode = node, None, "agent"
        self.image = subprocess.run([SCRIPTS + "/build-guest.sh"], check=True, capture_output=True,
                                    text=True).stdout.strip()
        self.folder = tempfile.mkdtemp(prefix="sp-b", dir="/tmp")
        self.shm = tempfile.mkdtemp(prefix="sp-b", dir="/dev/shm")
        self.daemon = SCRIPTS + "/private-libvirtd.sh"
        with open(self.folder + "/start.log", "w") as log:
            subprocess.run([self.daemon, "start", self.folder, self.image + "/cache"], check=True, stdout=log,
                           stderr=log, stdin=subprocess.DEVNULL,
                           env=dict(os.environ, PRIVATE_LIBVIRTD_OWNER=str(os.getpid())))
        with open(self.folder + "/holder.pid") as file:
            self.holder = file.read().strip()
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
        self.command = inside + ["serve", "--listen", address, "--run", self.shm + "/run", "--plugins", self.node.bin,
                                 "--config", self.folder + "/agent.yaml"] + state
        self.run_agent()

    def run_agent(self):
        with open(self.folder + "/agent.yaml", "w") as file:
            file.write("pluginConfiguration: {libvirt: {mode: %s}}\n" % self.mode)
        self.agent = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)
        for _ in range(100):
            if self.node.call("GET", "/v1/agents/bench")["isReachable"]:
                return
            time.sleep(0.1)
        raise SystemExit("the agent did not start:\n" + open(self.folder + "/agent.log").read())

    def use(self, mode):
        """How the agent brings guests to rest from now on."""
        if mode != self.mode:
            self.mode = mode
            self.agent.terminate()
            self.agent.wait(20)
            self.run_agent()

    def events(self):
        """Tells of guests that are suspended and resumed, until it is terminated."""
        listening = subprocess.Popen(
            ["nsenter", "--mount=/proc/%s/ns/mnt" % self.holder, "--wd=/", "--", "stdbuf", "-oL", "virsh", "event", "--all",
             "--loop", "--timestamp"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True)
        time.sleep(1)
        return listening

    def virsh(self, *arguments):
        # Straight into the daemon's namespace: a shell more would be counted against the ways that use virsh.
        inside = ["nsenter", "--mount=/proc/%s/ns/mnt" % self.holder, "--wd=/", "--", "virsh", "-q"]
        return subprocess.run(inside + list(arguments), check=True, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL).stdout

    def stop(self):
        if self.agent:
            self.agent.terminate()
            self.agent.wait(20)
        subprocess.run([self.daemon, "stop", self.folder])
        for folder in (self.folder, self.shm):
            shutil.rmtree(folder, ignore_errors=True)


class Guest:
    """Two disks with an ext4 each: a volume of ours over iSCSI, and a local qcow2 image."""

    def __init__(self, host, number):
        self.host, self.name, self.volume = host, "b%d" % number, "bench-%d" % number
        url = host.node.volume(self.volume, 64 << 20)
        portal, iqn = url[len("iscsi://"):].split("/")[:2]
        self.local = "%s/%s.qcow2" % (host.folder, self.name)
        for label in ("ours", "local"):
            fresh = "%s/%s.raw" % (host.folder, label)
            with open(fresh, "wb") as file:
                file.truncate(64 << 20)
            subprocess.run(["mkfs.ext4", "-q", "-L", label, fresh], check=True)
        subprocess.run(["qemu-img", "convert", "-n", "-f", "raw", host.folder + "/ours.raw", "--target-image-opts",
                        "driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=%s,file.target=%s,file.lun=0,"
                        "file.initiator-name=iqn.2026-11.bench:fill" % (portal, iqn)], check=True)
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", host.folder + "/local.raw", self.local], check=True)
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
        for _ in range(240):
            try:
                self.ask("guest-ping")
                return self.run("ls /mnt/ours /mnt/local")
            except subprocess.CalledProcessError:
                time.sleep(0.5)
        raise SystemExit("%s does not answer" % self.name)

    def ask(self, command, **arguments):
        request = json.dumps({"execute": command, "arguments": arguments})
        return json.loads(self.host.virsh("qemu-agent-command", self.name, request))["return"]

    def run(self, command):
        pid = self.ask("guest-exec", path="/bin/sh", arg=["-c", command], **{"capture-output": True})["pid"]
        while True:
            state = self.ask("guest-exec-status", pid=pid)
            if state["exited"]:
                return base64.b64decode(state.get("out-data", "")).decode()
            time.sleep(0.05)

    def start_writer(self, disk, pause_milliseconds):
        self.run("killall writer 2>/dev/null; rm -f /run/w; setsid writer -p %d -l /run/log /run/w /mnt/%s/n "
                 "</dev/null >/dev/null 2>&1 & until [ -s /run/w ]; do sleep 0.05; done" % (
                     pause_milliseconds * 1000, disk))

    def clock(self):
        """The guest's calendar, in seconds; asked without starting a program in it."""
        return self.ask("guest-get-time") / 1e9

    def log(self):
        """Ends the writer. (end, duration) of each of its rounds that was longer than 5 ms, in seconds."""
        lines = self.run("killall writer; cat /run/log").splitlines()
        return [tuple(float(word) for word in line.split()) for line in lines if len(line.split()) == 2]


def each(guests, body):
    with concurrent.futures.ThreadPoolExecutor(len(guests)) as pool:
        return list(pool.map(body, guests))


class Ways:
    def __init__(self, host):
        self.host, self.count = host, 0

    def snapshot(self, guests, consistency, policy="require"):
        self.count += 1
        name = "bench-%d" % self.count
        node = self.host.node
        job = node.call("POST", "/v1/snapshots", {
            "volumes": [g.volume for g in guests], "name": name, "consistency": consistency,
            "policy": policy, "leaseSeconds": LEASE_SECONDS})
        while job["state"] not in ("succeeded", "failed"):
            time.sleep(0.01)
            job = node.call("GET", "/v1/jobs/" + job["id"])
        if job["state"] == "failed":
            raise SystemExit("the snapshot failed: %s" % job.get("failure"))
        return node.call("GET", "/v1/snapshots/" + name)

    def undisturbed(self, guests):
        time.sleep(1)

    def ours(self, guests):
        return self.snapshot(guests, "fileSystem")

    def paused(self, guests):
        return self.snapshot(guests, "fileSystem", "allowLower")

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


def longest_pause(lines):
    """Of any guest, in milliseconds, from what libvirt told: TIME: event 'lifecycle' for domain 'NAME': Suspended Paused"""
    since, pauses = {}, []
    for line in lines:
        words = line.split()
        if "'lifecycle'" not in words or len(words) < 8:
            continue
        at = datetime.datetime.fromisoformat(" ".join(words[:2]).rstrip(":").split("+")[0])
        guest, event = words[6], words[7]
        if event == "Suspended":
            since[guest] = at
        elif event == "Resumed" and guest in since:
            pauses.append((at - since.pop(guest)).total_seconds() * 1000)
    if not pauses or since:
        raise SystemExit("libvirt did not tell of all pauses:\n" + "".join(lines))
    return max(pauses)


def paused_milliseconds(guests, way, disk, pause_milliseconds):
    """The longest that any of the guests was suspended, while their writers write."""
    each(guests, lambda guest: guest.start_writer(disk, pause_milliseconds))
    listening = guests[0].host.events()
    way(guests)
    time.sleep(0.5)
    listening.terminate()
    lines = listening.communicate()[0].splitlines(keepends=True)
    each(guests, Guest.log)
    return longest_pause(lines)


def quiet_milliseconds(guests, way, disk, pause_milliseconds):
    """The longest quiet time of any of the guests while `way` was at work: not while programs were started in them."""
    each(guests, lambda guest: guest.start_writer(disk, pause_milliseconds))
    time.sleep(QUIET_BEFORE_SECONDS)
    begun = each(guests, Guest.clock)
    way(guests)
    ended = each(guests, Guest.clock)
    logs = each(guests, Guest.log)
    return max([5.0] + [duration * 1000 for log, first, last in zip(logs, begun, ended)
                        for end, duration in log if first < end - duration / 2 < last])


def held_milliseconds(snapshot):
    """From the last acknowledged freeze to the first thaw asked for, and the longest that any guest was held."""
    times = [member["quietSeconds"] * 1000 for member in snapshot["evidence"]["members"]]
    return min(times), max(times)


def percentile(values, part):
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


class Report:
    NAMES = ("undisturbed", "ours", "paused", "serial", "qcow2")

    def __init__(self):
        self.quiet, self.held, self.longest = {}, {}, {}

    def add(self, count, way, milliseconds):
        self.quiet.setdefault((count, way), []).append(milliseconds)

    def print_quiet(self):
        print("longest time without a durable write in any guest (median, ms; number of rounds)")
        print("  guests" + "".join("%18s" % name for name in self.NAMES) + "   ours/1   ours/serial   paused/serial")
        counts = sorted({count for count, _ in self.quiet})
        median = {key: statistics.median(values) for key, values in self.quiet.items()}
        for count in counts:
            row = ["%11.0f (%2d)   " % (median[count, name], len(self.quiet[count, name]))
                   if (count, name) in median else "%18s" % "-" for name in self.NAMES]
            def ratio(way, other, of=count):
                above, below = median.get((count, way)), median.get((of, other))
                return "%.2f" % (above / below) if above and below else "-"

            print("  %6d" % count + "".join(row) + "%9s%14s%16s" % (
                ratio("ours", "ours", counts[0]), ratio("ours", "serial"), ratio("paused", "serial")))

    def print_held(self):
        print("snapshots in a row, ms: last freeze acknowledged to first thaw asked for; the longest that a guest was held")
        for count in sorted(self.held):
            held, longest = self.held[count], self.longest[count]
            print("  %6d guests, %3d snapshots: median %5.1f, p99 %5.1f, longest %5.1f; held: median %5.0f, longest %5.0f" % (
                count, len(held), statistics.median(held), percentile(held, 0.99), max(held),
                statistics.median(longest), max(longest)), flush=True)


def measure(arguments, host, guests, report, deadline):
    ways = Ways(host)
    counts = [count for count in arguments.guests if count <= len(guests)]
    for count in counts:
        ways.ours(guests[:count])  # The first of each is not counted: everything is cold.
    for _ in range(arguments.rounds):
        for count in counts:
            for way, disk in ((ways.undisturbed, "ours"), (ways.ours, "ours"), (ways.paused, "ours"),
                              (ways.serial, "ours"), (ways.qcow2, "local")):
                name = way.__name__
                if name not in arguments.ways:
                    continue
                if time.monotonic() > deadline:
                    return
                host.use("pause" if name == "paused" else "agent")
                measured = paused_milliseconds if name in ("paused", "serial") else quiet_milliseconds
                report.add(count, name, measured(guests[:count], way, disk, arguments.pause))
    host.use("agent")
    for _ in range(arguments.holds):
        for count in counts:
            if time.monotonic() > deadline:
                return
            least, most = held_milliseconds(ways.ours(guests[:count]))
            report.held.setdefault(count, []).append(least)
            report.longest.setdefault(count, []).append(most)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bin")
    parser.add_argument("--guests", type=lambda text: [int(word) for word in text.split(",")], default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--holds", type=int, default=25)
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(Report.NAMES))
    parser.add_argument("--pause", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=280)
    parser.add_argument("--raw", help="a file for all single figures, as JSON")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds - 15
    node = Node(os.path.abspath(arguments.bin))
    host, report = None, Report()
    try:
        host = Host(node)
        guests = [Guest(host, number) for number in range(1, max(arguments.guests) + 1)]
        each(guests, Guest.ready)
        print("%d guests answer after %.0f s" % (len(guests), arguments.seconds - 15 - (deadline - time.monotonic())),
              flush=True)
        measure(arguments, host, guests, report, deadline)
        report.print_quiet()
        report.print_held()
        if arguments.raw:
            with open(arguments.raw, "w") as file:
                json.dump({"quiet": {"%d %s" % key: value for key, value in report.quiet.items()},
                           "held": report.held, "longest": report.longest}, file)
    finally:
        if host:
            host.stop()
        node.stop()


if __name__ == "__main__":
    main()
