"""Stillpoint's iSCSI target beside tgtd, and both beside a floor that does nothing.

All three serve one LUN over loopback to the same client, one after another within each round, so that a slow minute of
the machine hits all of them. The client is client.c on libiscsi, and for small commands a second time lean.c, which needs
so little of the processors that the target is measured and not the client. tgtd has a plain file in the page cache, Stillpoint a volume of its
own store in a file beside it. Both must have a volatile write cache (WCE, asked for before the first case): a write is
answered before it is on the medium and survives the end of the target's process; nobody flushes. The table gives
medians over the rounds: commands a second and the target's processor time per command, and the median of the ratios
within each round.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
MEGABYTES = 512

# name, the client's arguments (client.c, or lean.c behind "lean"), wanted: at least so many times tgtd's rate, at most so much of its processor time.
CASES = (
    [("4 KiB random read, depth %d" % depth, "-d%d" % depth, *goal)
     for depth, *goal in ((1, 1.5, None), (8, None, None), (32, 2.5, 0.3), (128, None, None))]
    + [("4 KiB random write, depth %d" % depth, "-w -d%d" % depth, *goal)
       for depth, *goal in ((1, 1.8, None), (8, None, None), (32, 2.5, 0.3), (128, None, None))]
    + [("128 KiB sequential read, depth 16", "-S -b131072 -d16", 1.2, None),
       ("128 KiB sequential write, depth 16", "-S -w -b131072 -d16", 3, None),
       ("1 MiB sequential read, depth 4", "-S -b1048576 -d4", None, None),
       ("1 MiB sequential write, depth 4", "-S -w -b1048576 -d4", None, None),
       ("two sessions, 4 KiB read, depth 32", "-s2 -d32", 3, None),
       ("two sessions, 4 KiB write, depth 32", "-s2 -w -d32", 3, None),
       ("four sessions, 4 KiB read, depth 32", "-s4 -d32", None, None),
       ("four sessions, 4 KiB write, depth 32", "-s4 -w -d32", None, None),
       ("four sessions, 128 KiB read, depth 8", "-s4 -S -b131072 -d8", None, None),
       ("four sessions, 128 KiB write, depth 8", "-s4 -S -w -b131072 -d8", None, None),
       ("header digest, 4 KiB read, depth 32", "-g -d32", None, None),
       ("header digest, 4 KiB write, depth 32", "-g -w -d32", None, None)]
    + [("lean client, 4 KiB %s, depth %d" % (kind, depth), "lean %s-d%d" % (flag, depth), *goal)
       for kind, flag, high in (("read", "", 1.5), ("write", "-w ", 1.8))
       for depth, *goal in ((1, high, None), (8, None, None), (32, 2.5, 0.3), (128, None, None))]
    + [("lean client, two sessions, 4 KiB read", "lean -s2 -d32", 3, None),
       ("lean client, two sessions, 4 KiB write", "lean -s2 -w -d32", 3, None)])


def free_port():
    import socket
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def await_port(port):
    import socket
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit("nothing listens on port %d" % port)


class Tgt:
    """tgtd on a port and a control socket of its own. It ignores SIGTERM, so it is killed."""

    def __init__(self, work):
        port = free_port()
        self.env = dict(os.environ, TGT_IPC_SOCKET=work + "/tgt")
        self.process = subprocess.Popen(
            ["tgtd", "-f", "--iscsi", "portal=127.0.0.1:%d" % port], env=self.env, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        await_port(port)
        with open(work + "/tgt.img", "wb") as file:
            file.truncate(MEGABYTES << 20)
        iqn = "iqn.2026-11.bench:tgt"
        for line in ("--mode target --op new --tid 1 -T " + iqn,
                     "--mode logicalunit --op new --tid 1 --lun 1 -b " + work + "/tgt.img",
                     "--mode target --op bind --tid 1 -I ALL"):
            for _ in range(50):
                if subprocess.run(["tgtadm", "--lld", "iscsi"] + line.split(), env=self.env,
                                  capture_output=True).returncode == 0:
                    break
                time.sleep(0.1)
            else:
                raise SystemExit("tgtadm refused: " + line)
        self.url = "iscsi://127.0.0.1:%d/%s/1" % (port, iqn)

    def stop(self):
        self.process.kill()
        self.process.wait()


class Floor:
    def __init__(self, work):
        port = free_port()
        self.process = subprocess.Popen([work + "/floor", str(port), str(MEGABYTES)])
        await_port(port)
        self.url = "iscsi://127.0.0.1:%d/iqn.2026-11.bench:floor/1" % port

    def stop(self):
        self.process.kill()
        self.process.wait()


class Stillpoint:
    """The node as it is installed: `stillpoint serve`, with a thin volume in its own pool."""

    def __init__(self, work, binary):
        self.log = open(work + "/node.log", "w")
        env = dict(os.environ, STILLPOINT_RUN_DIR=work + "/run")
        self.process = subprocess.Popen(
            [binary, "serve", "--data", work + "/data", "--iscsi-listen", "127.0.0.1:0", "--api-listen",
             "127.0.0.1:0"], env=env, stdout=self.log, stderr=subprocess.STDOUT)
        for _ in range(300):
            with open(work + "/node.log") as file:
                found = dict(re.findall(r"^(api|iscsi) (\S+)$", file.read(), re.M))
            if len(found) == 2:
                break
            time.sleep(0.1)
        else:
            raise SystemExit("the node did not start: see " + work + "/node.log")
        with open(work + "/data/admin-token") as file:
            token = file.read().strip()

        def call(path, body):
            request = urllib.request.Request(
                found["api"] + path, data=json.dumps(body).encode(),
                headers={"Authorization": "Bearer " + token, "Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)

        made = call("/v1/volumes", {"name": "bench", "sizeBytes": MEGABYTES << 20})
        iqn = made["exports"][0]["iqn"]
        call("/v1/targets/%s/allow" % iqn, {"initiator": "any"})
        self.url = "iscsi://%s/%s/%d" % (found["iscsi"], iqn, made["exports"][0]["lun"])

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


class Server:
    """Any program that prints `iscsi HOST:PORT` and serves TARGET/LUN: for work on the target itself."""

    def __init__(self, work, command):
        words = command.split()
        self.process = subprocess.Popen(
            [word.replace("WORK", work) for word in words[1:]], stdout=subprocess.PIPE, text=True)
        self.url = "iscsi://%s/%s" % (self.process.stdout.readline().split()[1], words[0])

    def stop(self):
        self.process.kill()
        self.process.wait()


def client(work, target, arguments):
    words = arguments.split()
    program = words.pop(0) if words[0] == "lean" else "client"
    run = subprocess.run([work + "/" + program, *words, "-p", str(target.process.pid), target.url],
                         capture_output=True, text=True)
    if run.returncode:
        raise SystemExit("%s %s: %s" % (type(target).__name__, arguments, run.stderr.strip()))
    return json.loads(run.stdout)


def measure(work, targets, cases, rounds, seconds):
    results = {}
    for name, arguments, wanted_rate, wanted_cpu in cases:
        samples = {who: [] for who in targets}
        for turn in range(rounds):
            order = list(targets.items())
            for who, target in order[turn % len(order):] + order[:turn % len(order)]:
                samples[who].append(client(work, target, "%s -t%g" % (arguments, seconds)))
        row = {who: {key: statistics.median(one[key] for one in several) for key in several[0]}
               for who, several in samples.items()}
        row["rate"] = ratio(samples, "iops", "tgt")
        row["cpu"] = ratio(samples, "cpu_microseconds", "tgt")
        row["of_floor"] = ratio(samples, "iops", "floor")
        results[name] = row
        print_row(name, row, wanted_rate, wanted_cpu)
    return results


def ratio(samples, key, other):
    return statistics.median(
        ours[key] / max(theirs[key], 0.001) for ours, theirs in zip(samples["stillpoint"], samples[other]))


def print_row(name, row, wanted_rate, wanted_cpu):
    ours, tgt, floor, rate, cpu = row["stillpoint"], row["tgt"], row["floor"], row["rate"], row["cpu"]
    verdict = ""
    if wanted_rate:
        verdict = "goal %.1fx%s: %s" % (
            wanted_rate, " at %.1f" % wanted_cpu if wanted_cpu else "",
            "met" if rate >= wanted_rate and (not wanted_cpu or cpu <= wanted_cpu) else "NOT met")
    print("| %-37s | %8.0f | %8.0f | %5.2f | %6.1f | %6.1f | %4.2f | %8.0f | %4.2f | %s |" % (
        name, ours["iops"], tgt["iops"], rate, ours["cpu_microseconds"], tgt["cpu_microseconds"], cpu, floor["iops"],
        row["of_floor"], verdict), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--stillpoint", metavar="FILE", help="the executable, built for release")
    kind.add_argument("--server", metavar="'TARGET/LUN COMMAND'", help=Server.__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--cases", default=".", help="only those whose name this regular expression finds")
    parser.add_argument("--json", metavar="FILE", help="write all medians there")
    options = parser.parse_args()
    missing = [name for name in ("tgtd", "tgtadm", "cc") if not shutil.which(name)]
    if missing:
        raise SystemExit("needs %s (scripts/setup.sh installs them)" % ", ".join(missing))
    work = tempfile.mkdtemp(prefix="stillpoint-iscsi.", dir=os.environ.get("BENCH_DIRECTORY", "/var/tmp"))
    targets = {}
    try:
        subprocess.run(["cc", "-O2", "-o", work + "/client", HERE + "/client.c", "-liscsi", "-lpthread"], check=True)
        subprocess.run(["cc", "-O2", "-o", work + "/lean", HERE + "/lean.c", "-lpthread"], check=True)
        subprocess.run(["cc", "-O2", "-o", work + "/floor", HERE + "/floor.c"], check=True)
        targets["stillpoint"] = (
            Stillpoint(work, options.stillpoint) if options.stillpoint else Server(work, options.server))
        targets["tgt"] = Tgt(work)
        targets["floor"] = Floor(work)
        caches = {who: client(work, targets[who], "-c")["write_cache"] for who in ("stillpoint", "tgt")}
        if caches != {"stillpoint": 1, "tgt": 1}:
            raise SystemExit("not the same durability: write caches %s" % caches)
        for who in ("stillpoint", "tgt"):
            client(work, targets[who], "-F -b131072 -d8")
            client(work, targets[who], "-V -d32 -t0.3")
            client(work, targets[who], "lean -V -d32 -t0.3")
        print("| case | commands/s | tgtd | ratio | CPU µs/command | tgtd | ratio | floor | of floor | |")
        print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
        cases = [case for case in CASES if re.search(options.cases, case[0])]
        results = measure(work, targets, cases, options.rounds, options.seconds)
        if options.json:
            with open(options.json, "w") as file:
                json.dump(results, file, indent=1)
    finally:
        for target in targets.values():
            target.stop()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
