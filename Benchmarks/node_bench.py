"""The whole node measured from outside: snapshot time against size and number, and write rate before and after.

Prints a table of medians and ratios; absolute figures depend on the machine, ratios less so. The rate of 4 KiB writes is
taken with `qemu-img bench` over our target, alternating with the same command on a raw file on the same disk.
"""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

GIB = 1 << 30


class Node:
    def __init__(self, bin_directory):
        self.bin = bin_directory
        self.work = tempfile.mkdtemp(prefix="stillpoint-bench.", dir="/var/tmp")
        self.env = dict(os.environ, STILLPOINT_RUN_DIR=self.work + "/run")
        self.log = open(self.work + "/node.log", "w+")
        self.process = subprocess.Popen(
            [self.bin + "/stillpoint", "serve", "--data", self.work + "/data", "--iscsi-listen", "127.0.0.1:0",
             "--api-listen", "127.0.0.1:0"], env=self.env, stdout=self.log, stderr=subprocess.STDOUT)
        for _ in range(300):
            text = open(self.work + "/node.log").read()
            found = dict(re.findall(r"^(api|iscsi) (\S+)$", text, re.M))
            if len(found) == 2:
                break
            time.sleep(0.1)
        else:
            raise SystemExit("the node did not start:\n" + text)
        self.api, self.iscsi = found["api"], found["iscsi"]
        self.token = open(self.work + "/data/admin-token").read().strip()

    def call(self, method, path, body=None):
        request = urllib.request.Request(
            self.api + path, method=method, data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": "Bearer " + self.token, "Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def volume(self, name, size):
        made = self.call("POST", "/v1/volumes", {"name": name, "sizeBytes": size})
        iqn = made["exports"][0]["iqn"]
        self.call("POST", "/v1/targets/%s/allow" % iqn, {"initiator": "any"})
        return "iscsi://%s/%s/0" % (self.iscsi, iqn)

    def snapshot(self, volumes, name):
        """Seconds from the request until the job has ended."""
        started = time.perf_counter()
        job = self.call("POST", "/v1/snapshots", {"volumes": volumes, "name": name})
        while job["state"] not in ("succeeded", "failed"):
            job = self.call("GET", "/v1/jobs/" + job["id"])
        if job["state"] == "failed":
            raise SystemExit("snapshot failed: %s" % job.get("failure"))
        return time.perf_counter() - started

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        shutil.rmtree(self.work, ignore_errors=True)


def bench_command(target, write, depth=32, count=20000, step=1052672, cache="writeback", size=4096):
    """The step of 4 KiB calls scatters them over the volume."""
    return ["qemu-img", "bench", "-f", "raw", "-t", cache, "-d", str(depth), "-s", str(size), "-S", str(step),
            "-c", str(count)] + (["-w"] if write else []) + [target]


def bench_rate(count, output):
    return count / float(re.search(r"completed in ([0-9.]+) seconds", output).group(1))


def bench(target, write, count=20000, **load):
    """Requests per second of `qemu-img bench`."""
    command = bench_command(target, write, count=count, **load)
    return bench_rate(count, subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def sequential(target, write):
    return bench(target, write, depth=16, count=8192, step=131072, size=131072)


def snapshot_times(node):
    print("\nsnapshot of one volume, request to durable (median of 15, ms)")
    base = None
    for size in (GIB, 64 * GIB, 1024 * GIB, 16384 * GIB):
        name = "size-%d" % (size // GIB)
        node.volume(name, size)
        times = [node.snapshot([name], "%s-%d" % (name, i)) for i in range(15)]
        median = statistics.median(times) * 1000
        base = base or median
        print("  %6d GiB   %7.2f ms   ratio %.2f" % (size // GIB, median, median / base))
    for have in (100, 500):
        for i in range(len(node.call("GET", "/v1/snapshots?volume=size-1")), have):
            node.snapshot(["size-1"], "many-%d" % i)
        times = [node.snapshot(["size-1"], "after-%d-%d" % (have, i)) for i in range(15)]
        median = statistics.median(times) * 1000
        print("  with %4d snapshots %5.2f ms   ratio %.2f" % (have, median, median / base))


def write_rates(node):
    print("\n4 KiB writes at depth 32, 1 GiB volume, per second (median of 5, alternating with a raw file)")
    target = node.volume("rate", GIB)
    raw = node.work + "/raw"
    with open(raw, "wb") as file:
        file.truncate(GIB)
    bench(target, True)
    bench(raw, True)
    before, after, plain = [], [], []
    for i in range(5):
        before.append(bench(target, True))
        plain.append(bench(raw, True))
        node.snapshot(["rate"], "rate-%d" % i)
        after.append(bench(target, True))
    reads, plain_reads = alternate(lambda: bench(target, False), lambda: bench(raw, False))
    b, a, p = map(statistics.median, (before, after, plain))
    print("  raw file            %9.0f" % p)
    print("  target, overwriting %9.0f   of raw %.2f" % (b, b / p))
    print("  after a snapshot    %9.0f   of before %.2f" % (a, a / b))
    print("  reads               %9.0f   of raw %.2f" % (reads, reads / plain_reads))
    print("\n128 KiB sequential at depth 16, per second (median of 5, alternating with a raw file)")
    sequential(target, True)
    for name, write in (("writes", True), ("reads", False)):
        ours, theirs = alternate(lambda: sequential(target, write), lambda: sequential(raw, write))
        print("  %-10s target %9.0f   raw file %9.0f   ratio %.2f" % (name, ours, theirs, ours / theirs))


def alternate(first, second, rounds=5):
    pairs = [(first(), second()) for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*pairs)]


LOADS = [
    ("4 KiB random write, depth 1", dict(write=True, depth=1, count=10000)),
    ("4 KiB random write, depth 32", dict(write=True, count=40000)),
    ("4 KiB random read, depth 1", dict(write=False, depth=1, count=10000)),
    ("4 KiB random read, depth 32", dict(write=False, count=40000)),
    ("128 KiB sequential write, depth 16", dict(write=True, depth=16, count=8192, step=131072, size=131072)),
    ("128 KiB sequential read, depth 16", dict(write=False, depth=16, count=8192, step=131072, size=131072)),
]


def compare(state, loads, ours, other, prepare=lambda: None, rounds=5):
    """Rates of the volume that has snapshots and of one that has none, by turns; the order alternates, too."""
    for name, load in loads:
        for target in (ours, other):
            bench(target, **load)
        pairs = []
        for index in range(rounds):
            prepare()
            turn = {target: bench(target, **load) for target in ((ours, other) if index % 2 else (other, ours))}
            pairs.append((turn[ours], turn[other]))
        a, b = [statistics.median(column) for column in zip(*pairs)]
        ratio = statistics.median(x / y for x, y in pairs)
        print("  %-66s %9.0f %9.0f   %.2f" % ("%s: %s" % (state, name), a, b, ratio), flush=True)


def compare_timed(node, loads, ours, other, rounds=3):
    """A snapshot a second during the load, beside the same load without."""
    for name, load in loads:
        # About four seconds of it.
        count = int(4 * bench(other, **load))
        pairs = []
        for _ in range(rounds):
            running = subprocess.Popen(bench_command(ours, **dict(load, count=count)), stdout=subprocess.PIPE, text=True)
            made = 0
            while running.poll() is None:
                time.sleep(1)
                if running.poll() is None:
                    node.snapshot(["many"], "timed-%d" % time.monotonic_ns())
                    made += 1
            pairs.append((bench_rate(count, running.stdout.read()), bench(other, **dict(load, count=count))))
        a, b = [statistics.median(column) for column in zip(*pairs)]
        ratio = statistics.median(x / y for x, y in pairs)
        name = "one a second: %s (%d in the last run)" % (name, made)
        print("  %-66s %9.0f %9.0f   %.2f" % (name, a, b, ratio), flush=True)


def many_snapshots(node):
    """Rates of a volume with snapshots beside those of another one, and the time of a snapshot meanwhile."""
    print("\nthrough the target, calls per second: a volume with snapshots, one without, median of the ratios")
    ours, other = node.volume("many", GIB), node.volume("none", GIB)
    for target in (ours, other):
        sequential(target, True)
        bench(target, True)
    writes = [load for load in LOADS if load[1]["write"]]
    taken = iter(range(1 << 30))

    def snapshot():
        return node.snapshot(["many"], "m-%d" % next(taken))

    compare("no snapshot (control)", LOADS, ours, other)
    snapshot()
    compare("one snapshot", LOADS, ours, other)
    compare("just after each", writes, ours, other, snapshot)
    for count in (100, 10000):
        began = time.perf_counter()
        times = [snapshot() for _ in range(count - next(taken))]
        last = statistics.median(times[-50:]) * 1000
        print("  %5d snapshots: %.0f s, the last ones %.2f ms each" % (count, time.perf_counter() - began, last))
        compare("%d snapshots" % count, LOADS, ours, other)
        if count == 100:
            compare_timed(node, LOADS, ours, other)


def main():
    sections = {"times": snapshot_times, "rates": write_rates, "many": many_snapshots}
    for name in sys.argv[2:] or sections:
        node = Node(sys.argv[1])
        try:
            sections[name](node)
        finally:
            node.stop()


if __name__ == "__main__":
    main()
