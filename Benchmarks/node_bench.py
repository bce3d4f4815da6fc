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


def bench(target, write, depth=32, count=20000, step=1052672, cache="writeback", size=4096):
    """Requests per second of `qemu-img bench`; the step of 4 KiB ones scatters them over the volume."""
    command = ["qemu-img", "bench", "-f", "raw", "-t", cache, "-d", str(depth), "-s", str(size), "-S", str(step),
               "-c", str(count)] + (["-w"] if write else []) + [target]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return count / float(re.search(r"completed in ([0-9.]+) seconds", output).group(1))


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


def many_snapshots(node):
    """Rates of a volume with snapshots beside those of another one, and the time of a snapshot meanwhile."""
    print("\n4 KiB at depth 32 through the target: a volume with snapshots beside one without (median of 5 ratios)")
    ours, other = node.volume("many", GIB), node.volume("none", GIB)
    for target in (ours, other):
        sequential(target, True)
        bench(target, True)
    made = 0
    for count in (0, 100, 10000):
        began, times = time.perf_counter(), []
        for made in range(made, count):
            times.append(node.snapshot(["many"], "m-%d" % made))
        made = count
        if times:
            last = statistics.median(times[-50:]) * 1000
            print("  %5d snapshots: %.0f s, the last ones %.2f ms each" % (count, time.perf_counter() - began, last))
        for name, write in (("writes", True), ("reads", False)):
            pairs = [(bench(ours, write), bench(other, write)) for _ in range(5)]
            a, b = [statistics.median(column) for column in zip(*pairs)]
            ratio = statistics.median(x / y for x, y in pairs)
            print("  %5d snapshots, %-6s %9.0f   without %9.0f   ratio %.2f" % (count, name, a, b, ratio))


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
