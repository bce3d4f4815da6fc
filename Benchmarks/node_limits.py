#!/usr/bin/env python3
"""`stillpoint serve` under a memory limit: a 16 TiB volume, thousands of snapshots through REST with writes between them,
lists, a deleted range, kill -9, and how long until it serves again.

usage: node_limits.py BIN-DIRECTORY DIRECTORY [--address-space MiB] [--cgroup MiB] [--snapshots N] [--pool PATH VOLUME]

--address-space is RLIMIT_AS (`ulimit -v`): code, stacks and what is only reserved count too. --cgroup is memory.max, or
memory.limit_in_bytes, of a control group of its own (root): the page cache of the pool's file counts, and is given back.
With --pool the node serves a pool that is there already, e.g. one of `limits.py mapped`.
"""
import argparse, http.client, json, os, random, re, resource, shutil, signal, subprocess, sys, time

GIB, TIB, MIB = 1 << 30, 1 << 40, 1 << 20
SIZE = 16 * TIB


class ControlGroup:
    """One below the root of the hierarchy that has the memory controller."""

    def __init__(self, limit):
        name = "stillpoint-limits-%d" % os.getpid()
        if os.path.exists("/sys/fs/cgroup/memory/memory.limit_in_bytes"):
            self.path, files = "/sys/fs/cgroup/memory/" + name, ["memory.limit_in_bytes", "memory.max_usage_in_bytes"]
        else:
            self.path, files = "/sys/fs/cgroup/" + name, ["memory.max", "memory.peak"]
            with open("/sys/fs/cgroup/cgroup.subtree_control", "w") as control:
                control.write("+memory")
        os.mkdir(self.path)
        self.peak_file = files[1]
        with open(os.path.join(self.path, files[0]), "w") as file:
            file.write(str(limit))

    def enter(self):
        with open(self.path + "/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))

    def numbers(self):
        values = {}
        try:
            with open(os.path.join(self.path, self.peak_file)) as file:
                values["cgroup peak"] = int(file.read()) // MIB
        except OSError:
            pass  # Linux before 5.19 has no memory.peak.
        with open(self.path + "/memory.stat") as file:
            stat = dict(line.split() for line in file)
        for key in ("rss", "anon", "cache", "file", "shmem"):
            if key in stat:
                values["cgroup " + key] = int(stat[key]) // MIB
        return values

    def remove(self):
        try:
            os.rmdir(self.path)
        except OSError as error:
            print("left behind:", self.path, error)


class Node:
    def __init__(self, options, group):
        self.options, self.group = options, group
        self.log = os.path.join(options.directory, "node.log")
        self.data = os.path.join(options.directory, "data")
        self.environment = dict(os.environ, STILLPOINT_RUN_DIR=os.path.join(options.directory, "run"))
        if options.pool:
            self.environment["STILLPOINT_POOL_PATH"] = options.pool[0]
        else:
            self.environment["STILLPOINT_POOL_MAXIMUM_SIZE"] = "20TiB"
        for setting in options.set:
            key, value = setting.split("=", 1)
            self.environment[key] = value
        self.ports = ["127.0.0.1:0", "127.0.0.1:0"]
        self.connection = None

    def limits(self):
        if self.group:
            self.group.enter()
        if self.options.address_space:
            bytes = self.options.address_space * MIB
            resource.setrlimit(resource.RLIMIT_AS, (bytes, bytes))

    def start(self):
        """Seconds until it says where it serves."""
        began = time.perf_counter()
        log = open(self.log, "w")
        self.process = subprocess.Popen(
            [self.options.bin + "/stillpoint", "serve", "--data", self.data, "--iscsi-listen", self.ports[0],
             "--api-listen", self.ports[1]], env=self.environment, stdout=log, stderr=subprocess.STDOUT,
            preexec_fn=self.limits)
        while True:
            text = open(self.log).read()
            found = dict(re.findall(r"^(api|iscsi) (\S+)$", text, re.M))
            if len(found) == 2:
                break
            if self.process.poll() is not None:
                sys.exit("the node did not start (%s):\n%s" % (self.process.returncode, text[-3000:]))
            time.sleep(0.005)
        seconds = time.perf_counter() - began
        self.iscsi, self.address = found["iscsi"], found["api"].split("//")[1]
        self.ports = [self.iscsi, self.address]
        self.token = open(self.data + "/admin-token").read().strip()
        self.connection = http.client.HTTPConnection(self.address, timeout=600)
        return seconds

    def raw(self, method, path, body=None):
        headers = {"Authorization": "Bearer " + self.token, "Content-Type": "application/json"}
        try:
            self.connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = self.connection.getresponse()
            text = answer.read()
        except (http.client.HTTPException, OSError) as error:
            log = open(self.log).read()
            sys.exit("%s %s: %r; the node's end: %s\n%s" % (method, path, error, self.process.poll(), log[-3000:]))
        if answer.status >= 300:
            sys.exit("%s %s: %d %s" % (method, path, answer.status, text[:500]))
        return text

    def call(self, method, path, body=None):
        text = self.raw(method, path, body)
        return json.loads(text) if text else None

    def job(self, job):
        while job["state"] not in ("succeeded", "failed"):
            job = self.call("GET", "/v1/jobs/" + job["id"])
        if job["state"] == "failed":
            sys.exit("job failed: %s" % job.get("failure"))
        return job

    def cli(self, *arguments):
        began = time.perf_counter()
        output = subprocess.run(
            [self.options.bin + "/stillpoint", *arguments], env=self.environment, check=True, capture_output=True,
            text=True).stdout
        return time.perf_counter() - began, output

    def memory(self):
        with open("/proc/%d/status" % self.process.pid) as status:
            values = dict(line.split(":", 1) for line in status)
        numbers = {name: int(values[name].split()[0]) // 1024 for name in ("VmPeak", "VmHWM", "VmRSS", "RssAnon")}
        numbers["threads"] = int(values["Threads"])
        if self.group:
            numbers.update(self.group.numbers())
        return numbers

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(300)


def say(name, value):
    print("%s: %s" % (name, json.dumps(value)), flush=True)


def qemu_io(url, *commands):
    arguments = ["qemu-io", "-f", "raw", "-t", "writeback"]
    for command in commands:
        arguments += ["-c", command]
    result = subprocess.run(arguments + [url], capture_output=True, text=True)
    if result.returncode or "fail" in result.stdout:
        sys.exit("%s: %s %s" % (commands[0], result.stdout[-500:], result.stderr[-500:]))


def marks(pattern):
    """A block in each of 64 places over the whole volume."""
    return ["write -q -P %d %d 4096" % (pattern, index * (SIZE // 64) + 65536 * index) for index in range(64)] + ["flush"]


def verify(pattern):
    return [line.replace("write", "read") for line in marks(pattern)[:-1]]


def scattered(url, count, offset=0):
    """4 KiB writes in steps of 64 MiB and a block over the whole volume: each into a leaf of its own."""
    output = subprocess.run(
        ["qemu-img", "bench", "-w", "--pattern=165", "-f", "raw", "-t", "writeback", "-d", "16", "-s", "4096", "-o",
         str(offset), "-S", str(64 * MIB + 4096), "-c", str(count), url], capture_output=True, text=True)
    found = re.search(r"completed in ([0-9.]+) seconds", output.stdout)
    if not found:
        sys.exit("qemu-img bench: %s %s" % (output.stdout, output.stderr))
    return round(count / float(found.group(1)))


def quantiles(times):
    times = sorted(times)
    part = lambda share: round(times[min(len(times) - 1, int(len(times) * share))] * 1000, 1)
    return {"p50 ms": part(0.5), "p99 ms": part(0.99), "longest ms": round(times[-1] * 1000, 1)}


def url_of(node, volume):
    found = node.call("GET", "/v1/volumes/" + volume)
    if not found["exports"]:
        sys.exit("%s has no export" % volume)
    iqn = found["exports"][0]["iqn"]
    node.call("POST", "/v1/targets/%s/allow" % iqn, {"initiator": "any"})
    return "iscsi://%s/%s/%d" % (node.iscsi, iqn, found["exports"][0]["lun"])


def take_snapshots(node, volume, url, count):
    times, rates, began = [], [], time.time()
    for index in range(count):
        if index % max(1, count // 100) == 0:
            rates.append(scattered(url, 500, random.randrange(16384) * 4096))
        start = time.perf_counter()
        node.job(node.call("POST", "/v1/snapshots", {"volumes": [volume], "name": "s%d" % index}))
        times.append(time.perf_counter() - start)
        if (index + 1) % max(1, count // 10) == 0:
            say("after %d snapshots" % (index + 1), node.memory())
    say("snapshots, first tenth", quantiles(times[: max(1, count // 10)]))
    say("snapshots, last tenth", quantiles(times[-max(1, count // 10):]))
    say("seconds for all, with the writes between", round(time.time() - began, 1))
    say("scattered writes/s between them, first and last ten", [rates[:10], rates[-10:]])


def verify_snapshots(node, count):
    """A clone of the first one and of one behind the deleted range holds what was written before it."""
    for index in (0, count // 2):
        clone = "clone%d" % index
        node.call("POST", "/v1/clones", {"snapshot": "s%d" % index, "name": clone})
        qemu_io(url_of(node, clone), *verify(1))
        node.call("DELETE", "/v1/clones/" + clone)


def lists(node):
    for path in ("/v1/snapshots", "/v1/jobs", "/v1/volumes", "/v1/pool", "/metrics"):
        began = time.perf_counter()
        text = node.raw("GET", path)
        say("GET " + path, {"seconds": round(time.perf_counter() - began, 3), "KiB": len(text) // 1024})
    seconds, output = node.cli("snapshot", "list")
    say("stillpoint snapshot list", {"seconds": round(seconds, 2), "lines": output.count("\n")})
    print("\n".join(line for line in node.cli("pool", "show")[1].split("\n") if "emory" in line or "Used" in line))
    say("after the lists", node.memory())


def delete_range(node, first, last):
    began = time.time()
    for index in range(first, last):
        node.call("DELETE", "/v1/snapshots/s%d" % index)
    say("seconds to delete %d snapshots" % (last - first), round(time.time() - began, 1))
    while "stillpoint_pool_reclaims_pending 0" not in node.raw("GET", "/metrics").decode():
        time.sleep(0.1)
    say("seconds until their space is reclaimed", round(time.time() - began, 1))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bin")
    parser.add_argument("directory")
    parser.add_argument("--address-space", type=int, default=0)
    parser.add_argument("--cgroup", type=int, default=0)
    parser.add_argument("--snapshots", type=int, default=10000)
    parser.add_argument("--writes", type=int, default=300000, help="scattered ones, before and after; 16 KiB of disk each")
    parser.add_argument("--pool", nargs=2, metavar=("PATH", "VOLUME"))
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE for the node's environment")
    options = parser.parse_args()
    os.makedirs(options.directory, exist_ok=True)
    group = ControlGroup(options.cgroup * MIB) if options.cgroup else None
    node = Node(options, group)
    volume = options.pool[1] if options.pool else "v"
    try:
        say("seconds to the first start", round(node.start(), 2))
        say("at rest", node.memory())
        if not options.pool:
            node.call("POST", "/v1/volumes", {"name": volume, "sizeBytes": SIZE})
        url = url_of(node, volume)
        qemu_io(url, *marks(1))
        say("scattered writes/s", scattered(url, options.writes, 4096))
        say("after writes over the whole volume", node.memory())
        take_snapshots(node, volume, url, options.snapshots)
        qemu_io(url, *marks(2))
        lists(node)
        count = options.snapshots
        delete_range(node, count // 10, count // 5)
        say("after deletes", node.memory())
        qemu_io(url, *marks(3))
        load = subprocess.Popen(
            ["qemu-img", "bench", "-w", "--pattern=90", "-f", "raw", "-t", "writeback", "-d", "16", "-o", "12288", "-S",
             str(64 * MIB + 4096), "-c", "2000000", url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(3)
        node.kill()
        load.kill()
        load.wait()
        say("seconds to serve after kill -9", round(node.start(), 2))
        say("after the restart", node.memory())
        qemu_io(url, *verify(3))
        have = len(node.call("GET", "/v1/snapshots"))
        say("snapshots after the restart", have)
        verify_snapshots(node, options.snapshots)
        scattered(url, options.writes, 16384)
        say("after writes", node.memory())
        node.stop()
        say("seconds to serve after a clean end", round(node.start(), 2))
        say("after the start", node.memory())
        node.stop()
    finally:
        if node.process.poll() is None:
            node.kill()
        if group:
            group.remove()
        shutil.rmtree(options.directory, ignore_errors=True)


main()
