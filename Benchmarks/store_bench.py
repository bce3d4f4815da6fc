"""The store alone against a raw file on the same disk, and against other systems that take snapshots.

Figures of one run depend on the machine and its neighbours; what is compared alternates, and what is reported is the
median of the ratios of neighbouring runs. `Benchmarks/run.sh` builds what is needed; docs/benchmarks.md has the results.

    store_bench.py BENCH_PROGRAM SECTION... [--rounds N] [--seconds S] [--directory DIR]
    sections: rates snapshots times pause amplification peers direct (40 GiB of free disk for all of them)
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20
GIB = 1 << 30
FLUSH = 256  # writes of 4 KiB between two flushes, for everybody
JUST_AFTER = 3  # rounds with a snapshot before each, which keeps all that it writes


class Bench:
    """A store-bench process that keeps a pool and files open and runs loads on them."""

    def __init__(self, program):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, verb, **values):
        line = " ".join([verb] + ["%s=%s" % pair for pair in values.items()])
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer or (isinstance(answer, dict) and "failure" in answer):
            raise SystemExit("store-bench: %s: %s" % (line, answer))
        return answer

    def end(self):
        self.process.stdin.write("quit\n")
        self.process.stdin.flush()
        self.process.wait()


def ratio(pairs):
    """Median of the ratios of neighbouring runs."""
    return statistics.median(a / b for a, b in pairs)


def heading(text):
    print("\n" + text, flush=True)


def row(name, *cells):
    print("  %-44s" % name + "".join("%14s" % cell for cell in cells), flush=True)


class Section:
    open = []

    def __init__(self, options):
        self.options = options
        Section.open.append(self)
        self.directory = tempfile.mkdtemp(prefix="stillpoint-bench.", dir=options.directory)
        self.log = os.path.join("/dev/shm", os.path.basename(self.directory))
        self.bench = Bench(options.program)

    def path(self, name):
        return os.path.join(self.directory, name)

    def end(self):
        Section.open.remove(self)
        self.bench.end()
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.rmtree(self.log, ignore_errors=True)

    def pool(self, size=GIB, fill=True, **options):
        self.bench("create", path=self.path("pool"), log=self.log, **options)
        self.bench("volume", name="v", size=size)
        if fill:
            self.bench("run", on="v", pattern="sequential", block=MIB, depth=2, calls=size // MIB)

    def back(self, size):
        """Gives the pool's file storage, and the page cache its pages, up to `size` bytes: zeros where it has none. What
        a first touch costs is a matter of the file system and of the machine, not of the store; `rates` shows it."""
        descriptor, zeros, offset = os.open(self.path("pool"), os.O_RDWR), bytes(MIB), 0
        while offset < size:
            try:
                end = min(os.lseek(descriptor, offset, os.SEEK_DATA), size)
            except OSError:
                end = size
            while offset < end:
                offset += os.pwrite(descriptor, zeros[: min(MIB, end - offset)], offset)
            if offset < size:
                offset = os.lseek(descriptor, offset, os.SEEK_HOLE)
        os.fsync(descriptor)
        os.close(descriptor)

    def raw(self, size=GIB, path=None):
        path = path or self.path("raw")
        with open(path, "wb") as file:
            file.truncate(size)
        self.bench("file", name="raw", path=path)
        self.bench("run", on="raw", pattern="sequential", block=MIB, depth=2, calls=size // MIB)

    def rate_anew(self, **values):
        path = self.path("anew")
        open(path, "wb").close()
        self.bench("file", name="anew", path=path, anew=1)
        rate = self.rate("anew", **values)
        self.bench("endfile", name="anew")
        os.unlink(path)
        return rate

    def rate(self, on, **values):
        values.setdefault("seconds", self.options.seconds)
        values.setdefault("size", GIB)
        if values.get("op", "write") == "write":
            values.setdefault("flush", FLUSH)
        return self.bench("run", on=on, **values)["rate"]


def rates(options):
    heading(
        "Store and raw file, no snapshots, 1 GiB, calls per second (flush after 256 writes); "
        "anew: a file that writes where it has no storage yet")
    row("", "store", "raw file", "ratio", "anew", "ratio")
    section = Section(options)
    section.pool(io=options.io)
    section.raw()
    sequential = dict(block=131072, pattern="sequential", flush=64)
    loads = [
        ("128 KiB sequential write, depth 1", sequential),
        ("128 KiB sequential write, depth 4", dict(sequential, depth=4)),
        ("4 KiB random write, depth 1", dict(depth=1)),
        ("4 KiB random write, depth 32", dict(depth=32)),
        ("4 KiB random read, depth 1", dict(depth=1, op="read")),
        ("4 KiB random read, depth 32", dict(depth=32, op="read")),
        ("128 KiB sequential read after random writes", dict(block=131072, pattern="sequential", op="read")),
        ("128 KiB sequential write, depth 1, after random", sequential),
        ("128 KiB sequential read, depth 1", dict(block=131072, pattern="sequential", op="read")),
        ("128 KiB sequential read, depth 4", dict(block=131072, pattern="sequential", op="read", depth=4)),
    ]
    for name, load in loads:
        pairs, anew = [], []
        is_write = load.get("op", "write") == "write"
        if is_write:
            section.rate("v", **load)
        for _ in range(options.rounds):
            pairs.append((section.rate("v", **load), section.rate("raw", **load)))
            if is_write:
                anew.append((pairs[-1][0], section.rate_anew(**load)))
        store, raw = (statistics.median(column) for column in zip(*pairs))
        more = ["%.0f" % statistics.median(b for _, b in anew), "%.2f" % ratio(anew)] if anew else []
        row(name, "%.0f" % store, "%.0f" % raw, "%.2f" % ratio(pairs), *more)
    section.end()


def direct(options):
    heading("A raw file of 1 GiB through the page cache and with O_DIRECT, calls per second (flush after 256 writes)")
    row("", "cached", "direct", "direct/cached")
    section = Section(options)
    section.raw()
    section.bench("file", name="direct", path=section.path("raw"), direct=1)
    loads = [
        ("4 KiB random write, depth 1", dict(depth=1)),
        ("4 KiB random write, depth 32", dict(depth=32)),
        ("4 KiB random write, a flush after each, depth 1", dict(depth=1, flush=1)),
        ("4 KiB random read, depth 1", dict(depth=1, op="read")),
        ("4 KiB random read, depth 32", dict(depth=32, op="read")),
        ("128 KiB sequential write, depth 4", dict(block=131072, pattern="sequential", flush=64, depth=4)),
        ("128 KiB sequential read, depth 4", dict(block=131072, pattern="sequential", op="read", depth=4)),
    ]
    for cold in (False, True):
        for name, load in loads:
            if cold and load.get("op") != "read":
                continue
            pairs = []
            for _ in range(options.rounds):
                if cold:
                    subprocess.run(["sync", section.path("raw")], check=True)
                    descriptor = os.open(section.path("raw"), os.O_RDONLY)
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                    os.close(descriptor)
                # Cold means short: what was read once is in the cache.
                more = dict(seconds=0.2) if cold else {}
                pairs.append((section.rate("direct", **load, **more), section.rate("raw", **load, **more)))
            a, b = (statistics.median(column) for column in zip(*pairs))
            row(name + (", nothing cached" if cold else ""), "%.0f" % b, "%.0f" % a, "%.2f" % ratio(pairs))
    section.end()


LOADS = [
    ("4 KiB random write, depth 1", dict(depth=1)),
    ("4 KiB random write, depth 32", dict(depth=32)),
    ("4 KiB random read, depth 1", dict(depth=1, op="read")),
    ("4 KiB random read, depth 32", dict(depth=32, op="read")),
    ("128 KiB sequential write, depth 4", dict(block=131072, pattern="sequential", flush=64, depth=4)),
    ("128 KiB sequential read, depth 4", dict(block=131072, pattern="sequential", op="read", depth=4)),
]


class Twins:
    """Two pools that get the same loads by turns; one has snapshots, the other has none."""

    def __init__(self, options):
        self.options, self.plain, self.other = options, Section(options), Section(options)
        for section, size in ((self.plain, 3 * GIB), (self.other, 14 * GIB)):
            section.pool()
            section.back(size)
            section.rate("v", depth=32)

    def snapshots(self, count, **values):
        return self.other.bench("snapshots", on="v", count=count, **values)

    def maintain(self):
        for section in (self.plain, self.other):
            section.bench("maintain")

    def turns(self, ours, theirs, prepare=None):
        pairs = []
        for index in range(JUST_AFTER if prepare else self.options.rounds):
            if prepare:
                prepare()
            # The order alternates, too.
            if index % 2:
                without = theirs()
                pairs.append((ours(), without))
            else:
                with_them = ours()
                pairs.append((with_them, theirs()))
        return pairs

    def compare(self, state, loads, prepare=None):
        for name, load in loads:
            for section in (self.plain, self.other):
                # What the load before left behind (scattered blocks, dirty pages) is not this one's.
                section.rate("v", **dict(load, seconds=0.2))
            pairs = self.turns(
                lambda: self.other.rate("v", **load), lambda: self.plain.rate("v", **load), prepare)
            self.tell(state, name, pairs)

    def compare_timed(self, state, loads):
        """A snapshot a second beside the load; three of them in each run."""
        for name, load in loads:
            values = dict(dict(size=GIB, seconds=3.5), **load)
            if values.get("op", "write") == "write":
                values.setdefault("flush", FLUSH)
            pairs = self.turns(
                lambda: self.other.bench("timed", on="v", every=1, **values)["load"]["rate"],
                lambda: self.plain.rate("v", **dict(load, seconds=3.5)))
            self.tell(state, name, pairs)

    @staticmethod
    def tell(state, name, pairs):
        a, b = (statistics.median(column) for column in zip(*pairs))
        row("%s: %s" % (state, name), "%.0f" % a, "%.0f" % b, "%.2f" % ratio(pairs))

    def end(self):
        self.plain.end()
        self.other.end()


def snapshots(options):
    # Longer, and what the snapshots hold would outgrow the storage that the files have beforehand.
    options = argparse.Namespace(**dict(vars(options), seconds=min(options.seconds, 0.7)))
    heading("What snapshots cost: 1 GiB, calls per second; two pools take turns, one without snapshots")
    row("", "with", "without", "ratio")
    # Pools of their own: after sequential writes random ones find more room in one piece, and the other way round.
    for loads in ([load for load in LOADS if "block" not in load[1]], [load for load in LOADS if "block" in load[1]]):
        snapshots_under(options, loads)


def snapshots_under(options, loads):
    twins = Twins(options)
    writes = [load for load in loads if load[1].get("op", "write") == "write"]
    twins.compare("no snapshot (control)", loads)
    twins.snapshots(1)
    twins.compare("one snapshot", loads)
    twins.compare("just after each", writes, lambda: twins.snapshots(1))
    twins.snapshots(100 - 1 - JUST_AFTER * len(writes), writes=64, depth=1, size=GIB)
    twins.maintain()
    twins.compare("100 snapshots", loads)
    began = time.time()
    made = twins.snapshots(10000 - 100, writes=16, depth=1, size=GIB)
    row("10,000 snapshots made, median ms each", "%.2f" % (made["p50us"] / 1000), "%.0f s" % (time.time() - began))
    twins.maintain()
    twins.compare("10,000 snapshots", loads)
    twins.compare("just after each, with 10,000", writes, lambda: twins.snapshots(1))
    twins.end()
    # Apart: what it holds is not to push out of memory what the others read.
    for load in loads:
        twins = Twins(options)
        twins.compare_timed("one a second", [load])
        twins.end()


def alternate(sections, rounds):
    """Median ms of a snapshot call in each of several pools, taken in turns, so that all meet the same disk."""
    found = [[] for _ in sections]
    for _ in range(rounds):
        for index, (section, size) in enumerate(sections):
            found[index].append(
                section.bench("snapshots", on="v", count=4, writes=64, depth=1, size=size)["p50us"] / 1000)
    return [statistics.median(column) for column in found]


def alternate_pauses(sections, rounds):
    """Median over the rounds of p50 and p99, us, of the 4 KiB writes that overlap a snapshot call."""
    found = [[] for _ in sections]
    for _ in range(rounds):
        for index, (section, size) in enumerate(sections):
            pause = section.bench(
                "pause", on="v", depth=4, threads=2, size=size, flush=FLUSH, count=40, everyus=25000)["pause"]
            found[index].append((pause["p50us"], pause["p99us"]))
    return [tuple(statistics.median(column) for column in zip(*values)) for values in found]


def times(options):
    heading(
        "Time of one snapshot call, ms, 64 random writes before each; and us of writes at depth 4 by two threads that "
        "overlap one; the pools of a group take turns")
    row("", "call, ms", "ratio to first", "pause p50", "pause p99", "ratio to first")

    def group(names, sections):
        for section, _ in sections:
            section.bench("maintain")
        calls = alternate(sections, 4 * options.rounds)
        pauses = alternate_pauses(sections, options.rounds)
        for name, call, (p50, p99) in zip(names, calls, pauses):
            row(name, "%.2f" % call, "%.2f" % (call / calls[0]), "%.0f" % p50, "%.0f" % p99,
                "%.2f" % (p99 / pauses[0][1]))
        for section, _ in sections:
            section.end()

    sizes = (GIB, 64 * GIB, 1024 * GIB, 16384 * GIB)
    sections = []
    for size in sizes:
        section = Section(options)
        section.pool(size, fill=False)
        section.bench("run", on="v", depth=4, calls=20000, size=size)
        sections.append((section, size))
    group(["volume of %d GiB, 78 MiB mapped" % (size // GIB) for size in sizes], sections)

    amounts = (64 * MIB, GIB, 4 * GIB)
    sections = []
    for amount in amounts:
        section = Section(options)
        section.pool(16 * GIB, fill=False)
        section.bench("run", on="v", pattern="sequential", block=MIB, depth=2, calls=amount // MIB, size=16 * GIB)
        sections.append((section, 64 * MIB))
    group(["%d MiB mapped" % (amount // MIB) for amount in amounts], sections)

    counts = (0, 100, 1000, 10000)
    sections = []
    for count in counts:
        section = Section(options)
        section.pool(64 * MIB)
        if count:
            section.bench("snapshots", on="v", count=count, writes=4, depth=1, size=64 * MIB)
        sections.append((section, 64 * MIB))
    group(["with %d snapshots" % count for count in counts], sections)


def pause(options):
    heading("Writers' pause: 4 KiB random writes that overlap a snapshot call, and that overlap a flush instead (us)")
    row("", "p50", "p99", "longest", "call p50")
    section = Section(options)
    section.pool()
    section.rate("v", depth=4)
    for depth, threads in ((1, 1), (4, 4), (32, 2), (32, 32)):
        for control in (0, 1):
            found = section.bench(
                "pause", on="v", depth=depth, threads=threads, size=GIB, flush=FLUSH, count=60, control=control,
                everyus=200000)
            row(
                "depth %d, %d threads, %s" % (depth, threads, "a flush" if control else "a snapshot"),
                "%.0f" % found["pause"]["p50us"], "%.0f" % found["pause"]["p99us"], "%.0f" % found["pause"]["maxus"],
                "%.0f" % found["call"]["p50us"])
    section.end()


def device_sectors(path):
    """Sectors written so far to the disk that holds the path."""
    status = os.stat(path)
    with open("/sys/dev/block/%d:%d/stat" % (os.major(status.st_dev), os.minor(status.st_dev))) as file:
        return int(file.read().split()[6])


def amplification(options):
    heading("Bytes written and occupied for each byte of 4 KiB random writes, 1 GiB volume, 40,000 writes, depth 4")
    row("", "store counts", "device counts", "occupied/mapped")
    for name, count in (("no snapshots", 0), ("a snapshot every 4000 writes", 10)):
        section = Section(options)
        section.pool()
        section.bench("maintain")
        subprocess.run(["sync", "-f", section.directory], check=True)
        before, sectors = section.bench("stats"), device_sectors(section.directory)
        calls = 40000
        for index in range(10):
            section.bench("run", on="v", depth=4, size=GIB, calls=calls // 10, flush=FLUSH, seed=index + 1)
            if count:
                section.bench("snapshots", on="v", count=1)
        section.bench("maintain")
        subprocess.run(["sync", "-f", section.directory], check=True)
        after, written = section.bench("stats"), device_sectors(section.directory)
        own = sum(after[key] - before[key] for key in ("data", "metadata", "journal"))
        device = (written - sectors) * 512
        occupied = os.stat(section.path("pool")).st_blocks * 512
        row(
            name, "%.2f" % (own / (calls * 4096)), "%.2f" % (device / (calls * 4096)), "%.2f" % (occupied / after["used"]))
        section.end()


# Peers. Everybody does the same: data written in scattered order, 64 KiB at a time; then 4 KiB writes in the order of
# `qemu-img bench -S STEP`, a flush after 256 of them, depth 16.

STEP = 1052672
FILL = dict(block=65536, step=17 * 65536)
DEPTH = 16


def qemu_bench(image, calls, block=4096, step=STEP):
    output = subprocess.run(
        ["qemu-img", "bench", "-w", "-f", "qcow2", "-t", "writeback", "-i", "threads", "-d", str(DEPTH), "-s",
         str(block), "-S", str(step), "-c", str(calls), "--flush-interval", str(FLUSH), image],
        check=True, capture_output=True, text=True).stdout
    return calls / float(re.search(r"completed in ([0-9.]+) seconds", output).group(1))


class StorePeer:
    name = "Stillpoint"

    def __init__(self, options, size):
        self.section, self.size = Section(options), size
        self.section.pool(size, fill=False)
        self.write(size // FILL["block"], **FILL)

    def write(self, calls, **values):
        return self.section.bench(
            "run", on="v", pattern="step", depth=DEPTH, size=self.size, calls=calls, flush=FLUSH,
            **dict(dict(step=STEP), **values))["rate"]

    def snapshot(self):
        return self.section.bench("snapshots", on="v", count=1)["maxus"] / 1000

    def end(self):
        self.section.end()


class FilePeer:
    """A raw file; with a file system of its own in a loop device, each snapshot is a FICLONE of it."""

    def __init__(self, options, size, kind=None):
        self.name = "%s, FICLONE" % kind if kind else "raw file"
        self.section, self.size, self.kind, self.count = Section(options), size, kind, 0
        self.home = self.section.directory
        if kind:
            image = self.section.path("image")
            with open(image, "wb") as file:
                file.truncate(size * 6)
            self.loop = subprocess.run(
                ["losetup", "--find", "--show", image], check=True, capture_output=True, text=True).stdout.strip()
            subprocess.run(["mkfs.%s" % kind, "-q", self.loop], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self.home = self.section.path("mount")
            os.mkdir(self.home)
            subprocess.run(["mount", self.loop, self.home], check=True)
        path = os.path.join(self.home, "raw")
        with open(path, "wb") as file:
            file.truncate(size)
        self.section.bench("file", name="raw", path=path)
        self.write(size // FILL["block"], **FILL)

    def write(self, calls, **values):
        return self.section.bench(
            "run", on="raw", pattern="step", depth=DEPTH, size=self.size, calls=calls, flush=FLUSH,
            **dict(dict(step=STEP), **values))["rate"]

    def snapshot(self):
        if not self.kind:
            return float("nan")
        self.count += 1
        began = time.perf_counter()
        copy = os.path.join(self.home, "s%d" % self.count)
        subprocess.run(["cp", "--reflink=always", os.path.join(self.home, "raw"), copy], check=True)
        descriptor = os.open(copy, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        return (time.perf_counter() - began) * 1000

    def end(self):
        self.section.bench("endfile", name="raw")
        if self.kind:
            subprocess.run(["umount", self.home], check=True)
            subprocess.run(["losetup", "--detach", self.loop], check=True)
        self.section.end()


class QcowPeer:
    name = "qcow2, internal"

    def __init__(self, options, size):
        self.section, self.size, self.count = Section(options), size, 0
        self.image = self.section.path("image.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.image, str(size)], check=True)
        self.write(size // FILL["block"], **FILL)

    def write(self, calls, **values):
        return qemu_bench(self.image, calls, **values)

    def snapshot(self):
        self.count += 1
        began = time.perf_counter()
        subprocess.run(["qemu-img", "snapshot", "-c", "s%d" % self.count, self.image], check=True)
        return (time.perf_counter() - began) * 1000

    def end(self):
        self.section.end()


def make_peers(options, size):
    peers = [("raw", lambda: FilePeer(options, size)), ("qcow2", lambda: QcowPeer(options, size))]
    if os.geteuid() == 0 and os.path.exists("/dev/loop-control"):
        peers += [(kind, lambda kind=kind: FilePeer(options, size, kind)) for kind in ("btrfs", "xfs")]
    else:
        print("  btrfs and xfs are left out: they need root and loop devices")
    return peers


def peer_round(peer, calls):
    """Writes, a snapshot, the same writes again: rates before and after, ms of the snapshot, bytes for each byte after."""
    directory = peer.section.directory
    before = peer.write(calls)
    snapshot = peer.snapshot()
    subprocess.run(["sync", "-f", directory], check=True)
    sectors = device_sectors(directory)
    after = peer.write(calls)
    subprocess.run(["sync", "-f", directory], check=True)
    return before, after, snapshot, (device_sectors(directory) - sectors) * 512 / (calls * 4096)


def peers(options):
    heading(
        "Peers, %d GiB written in scattered order; 4 KiB writes at depth %d, flush after %d; the store and one peer take "
        "turns, median of %d rounds; ratios: store/peer" % (options.peer_gib, DEPTH, FLUSH, options.rounds))
    row("", "before /s", "after /s", "after/before", "snapshot ms", "bytes/byte")
    calls = options.peer_calls
    for name, make in make_peers(options, options.peer_gib * GIB):
        if options.peer and name not in options.peer:
            continue
        pair = [StorePeer(options, options.peer_gib * GIB)]
        try:
            pair.append(make())
            rounds = []
            for index in range(options.rounds + 1):
                turn = {peer: peer_round(peer, calls) for peer in (pair if index % 2 else reversed(pair))}
                # The first round only scatters what the fill wrote.
                if index:
                    rounds.append([turn[peer] for peer in pair])
            for at, peer in enumerate(pair):
                b, a, t, d = (statistics.median(column) for column in zip(*(turn[at] for turn in rounds)))
                row(peer.name, "%.0f" % b, "%.0f" % a, "%.2f" % (a / b), "%.1f" % t, "%.2f" % d)
            row("  store/%s" % name, *(
                "%.3g" % ratio([(ours[at], theirs[at]) for ours, theirs in rounds]) if at is not None else ""
                for at in (0, 1, None, 2, 3)))
        finally:
            for peer in pair:
                peer.end()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("sections", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--directory", default="/var/tmp")
    parser.add_argument("--io", default="auto")
    parser.add_argument("--peer-gib", type=int, default=1)
    parser.add_argument("--peer", action="append", help="only this one: raw, qcow2, btrfs, xfs")
    parser.add_argument("--peer-calls", type=int, default=8192)
    options = parser.parse_args()
    known = {f.__name__: f for f in (rates, snapshots, times, pause, amplification, peers, direct)}
    for name in options.sections or known:
        if name not in known:
            sys.exit("there is no section %s; there are %s" % (name, ", ".join(known)))
        try:
            known[name](options)
        finally:
            while Section.open:
                Section.open[-1].end()


main()
