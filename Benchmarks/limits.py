#!/usr/bin/env python3
"""A pool under a memory limit: a 16 TiB volume with a mapping in every 64 MiB, 10,000 snapshots, and what writers feel.

usage: limits.py STORE-BENCH DIRECTORY [LIMIT-MiB] [SNAPSHOTS]

The limit is one of the address space (RLIMIT_AS), so it counts code, stacks and what is only reserved as well.
"""
import json, os, resource, subprocess, sys, time

bench, directory = sys.argv[1], sys.argv[2]
limit = int(sys.argv[3] if len(sys.argv) > 3 else 1024) << 20
snapshots = int(sys.argv[4] if len(sys.argv) > 4 else 10000)
pool = os.path.join(directory, "pool")
TIB, GIB, MIB = 1 << 40, 1 << 30, 1 << 20


class Store:
    def __init__(self):
        self.process = subprocess.Popen(
            [bench], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            # glibc reserves 64 MiB of addresses for each thread's arena; they would count and are no memory.
            env=dict(os.environ, MALLOC_ARENA_MAX="2"),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))

    def __call__(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
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
