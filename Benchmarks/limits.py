#!/usr/bin/env python3
"""A pool under a memory limit: a 16 TiB volume, 10,000 snapshots, and what writers feel.

usage: limits.py STORE-BENCH DIRECTORY [LIMIT-MiB] [SNAPSHOTS]        with a mapping in every 64 MiB
       limits.py mapped STORE-BENCH DIRECTORY [LIMIT-MiB] [SNAPSHOTS] [MAPPED-TiB]    with every block mapped

The limit is one of the address space (RLIMIT_AS), so it counts code, stacks and what is only reserved as well.

`mapped` first fills DIRECTORY/mapped, where it is not there yet, with blocks of zeros that take no room: at 12 GiB a second,
so 16 TiB take twenty minutes or more, without a limit. Their map has 64 GiB; on btrfs with compress-force=zstd it takes 6 GiB,
and no other usual file system holds a file of 16 TiB. The pool stays, and is used again as it was left.
"""
import json, os, resource, subprocess, sys, time

is_mapped = sys.argv[1] == "mapped"
arguments = sys.argv[2:] if is_mapped else sys.argv[1:]
bench, directory = arguments[0], arguments[1]
limit = int(arguments[2] if len(arguments) > 2 else 1024) << 20
snapshots = int(arguments[3] if len(arguments) > 3 else 10000)
mapped_tib = int(arguments[4] if len(arguments) > 4 else 16)
pool = os.path.join(directory, "mapped" if is_mapped else "pool")
TIB, GIB, MIB = 1 << 40, 1 << 30, 1 << 20


class Store:
    def __init__(self, limit=limit):
        self.process = subprocess.Popen(
            [bench], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            # glibc reserves 64 MiB of addresses for each thread's arena; they would count and are no memory.
            env=dict(os.environ, MALLOC_ARENA_MAX="2"),
            preexec_fn=lambda: limit and resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))

    def __call__(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        text = self.process.stdout.readline()
        if not text:
            sys.exit(f"{line}: the program ended with {self.process.wait()}")
        answer = json.loads(text)
        if "error" in answer:
            sys.exit(f"{line}: {answer['error']}")
        return answer

    def peak(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            values = dict(line.split(":", 1) for line in status)
        return {name: int(values[name].split()[0]) // 1024 for name in ("VmHWM", "VmPeak")}

    def kill(self):
        self.process.kill()
        self.process.wait()

    def quit(self):
        self.process.stdin.write("quit\n")
        self.process.stdin.close()
        self.process.wait()


def say(name, value):
    print(f"{name}: {json.dumps(value)}", flush=True)


def load(store):
    return store("run on=v op=write pattern=random depth=8 seconds=8 flush=64 size=%d" % GIB)


def fill():
    """As far as a run before it did not come: a chunk at a time, and how far is in a file beside the pool."""
    progress = pool + ".filled"
    at = int(open(progress).read()) if os.path.exists(progress) else 0
    while at < mapped_tib * TIB:
        store = Store(limit=0)
        options = f"path={pool} size={(mapped_tib + mapped_tib // 4 + 1) * TIB} hollow=1 overlay=4000000"
        store(("open " if at else "create ") + options)
        if not at:
            store(f"volume name=v size={mapped_tib * TIB}")
        answer = store(f"fill on=v from={at} to={mapped_tib * TIB} seconds=240")
        say("filled", dict(answer, rate=round((answer["filled"] - at) / answer["seconds"] / GIB, 2)))
        store("close")
        store.quit()
        at = answer["filled"]
        with open(progress, "w") as file:
            file.write(str(at))


def mapped():
    fill()
    size = mapped_tib * TIB
    store = Store()
    # Three quarters of what is left beside code, stacks and arenas, as `stillpoint serve` takes it.
    options = f"path={pool} memory={(limit - 256 * MIB) // 4 * 3}"
    run = f"run on=v pattern=random depth=8 size={size}"
    say("opening", store("open " + options))
    say("peak MiB", store.peak())
    say("reads", store(run + " op=read seconds=10 seed=1"))
    say("writes", store(run + " op=write seconds=20 flush=64 seed=2"))
    say("peak MiB", store.peak())
    say("a checkpoint", store("maintain"))
    say("snapshot calls", store(f"snapshots on=v count={snapshots} writes=8 size={size}"))
    say("peak MiB", store.peak())
    say("writes with the snapshots", store(run + " op=write seconds=20 flush=64 seed=3"))
    say("reads with the snapshots", store(run + " op=read seconds=10 seed=4"))
    say("writes at a cut", store(f"pause on=v op=write pattern=random depth=8 count=200 flush=64 size={size}"))
    say("peak MiB", store.peak())
    say("diff of the first and the middle snapshot", store(f"diff on=v from=0 to={snapshots // 2}"))
    say("diff of the first and the last", store(f"diff on=v from=0 to={snapshots - 1}"))
    say("deleting 1000 in the middle", store(f"delete from={snapshots // 2} count=1000"))
    say("peak MiB", store.peak())
    say("unmapping 1 TiB", store(f"unmap on=v at={size // 2} length={min(TIB, size // 4)}"))
    say("a checkpoint", store("maintain"))
    say("checkpoints that reclaim it", store("delete from=0 count=0"))
    say("stats", store("stats"))
    say("peak MiB", store.peak())
    say("writes before the kill", store(run + " op=write seconds=5 flush=64 seed=5"))
    store.kill()
    store = Store()
    say("opening after a kill", store("open " + options))
    say("peak MiB", store.peak())
    say("reads", store(run + " op=read seconds=5 seed=6"))
    say("a check of all maps", store(f"check memory={256 * MIB}"))
    say("peak MiB", store.peak())
    store("close")
    say("opening", store("open " + options))
    store.quit()


def scattered():
    if os.path.exists(pool):
        os.unlink(pool)
    store = Store()
    options = f"path={pool} size={20 * TIB} cache={256 * MIB} overlay=50000"
    store("create " + options)
    store(f"volume name=v size={16 * TIB}")
    say("writes without snapshots", load(store))
    say("stats", store("stats"))
    began = time.time()
    store("run on=v op=write pattern=sequential depth=1 step=%d calls=%d seconds=600 size=%d"
          % (64 * MIB, 16 * TIB // (64 * MIB), 16 * TIB))
    store("maintain")
    say("seconds to map a block in every 64 MiB", round(time.time() - began, 1))
    say("peak MiB", store.peak())
    began = time.time()
    say("snapshot calls", store(f"snapshots on=v count={snapshots} writes=1 size={GIB}"))
    say("seconds for the snapshots", round(time.time() - began, 1))
    store("maintain")
    say("writes with the snapshots", load(store))
    say("writes at a cut", store(f"pause on=v op=write pattern=random depth=8 count=200 flush=64 size={GIB}"))
    say("stats", store("stats"))
    say("peak MiB", store.peak())
    store.kill()
    store = Store()
    say("opening after a kill", store("open " + options))
    say("reads", store(f"run on=v op=read pattern=random depth=8 seconds=3 size={16 * TIB}"))
    say("peak MiB", store.peak())
    store("close")
    say("opening", store("open " + options))
    store.quit()
    os.unlink(pool)


if is_mapped:
    mapped()
else:
    scattered()
