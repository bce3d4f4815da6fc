#!/usr/bin/env python3
"""Runs a build or the tests and says at the end, in a few lines, what failed: scripts/test.py COMMAND...

Everything that COMMAND prints goes through at once. When it fails, the last lines are a summary: each failed test with
its issues and where they are, or the compiler's errors, then the runner's closing line. When tests pass, the slowest
ten are listed before the closing line. The exit code is the command's own; 128 and the signal when a signal ended it.
A command that prints nothing for TEST_STALL_SECONDS (default 2400) is ended, and what it was doing is named.

With TEST_SECOND_TRY=1, as in CI, up to three tests that failed are run once more, each alone. When all of them pass, the
run has passed, and its last lines name them with what went wrong: a test on real parts that a busy machine upset has to
be mended, but hides nothing else. What is the same on every machine (SECOND_TRY_NEVER) has to pass at once.
"""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading

# What is kept of a run in CI is its last twenty lines; make adds one of its own.
SUMMARY_LINES = 17
LINE_COLUMNS = 180
ISSUE_LINES = 200
SLOWEST = 10
SECOND_TRIES = 3
# Seeded, or without threads, processes and sockets.
SECOND_TRY_NEVER = {
    "APITests", "BlockIOTests", "BlockStoreTests", "CatalogTests", "PluginKitTests", "ProtectionTests", "SCSITests",
    "StyleTests",
}

STARTED = re.compile(r"◇ Test (?!run |case )(?P<name>.+) started\.$")
ENDED = re.compile(
    r"(?P<mark>[✔✘━]) Test (?!run |case )(?P<name>.+?)(?: with \d+ test cases?)? (?P<word>passed|failed) after "
    r"(?P<seconds>[0-9.]+) seconds(?: with .*)?\.$")
SKIPPED = re.compile(r"➜ Test (?P<name>.+?) skipped")
ISSUE = re.compile(
    r"✘ Test (?!case )(?P<name>.+?) recorded an issue(?P<case> with \d+ arguments? .*?)?"
    r" at (?P<where>[^ ]+?:\d+)(?::\d+)?: (?P<text>.*)$")
CLOSING = re.compile(r"[✔✘━] Test run with .*$")
# Of an error inside a macro the place is in a note below it.
COMPILER_ERROR = re.compile(r"^[ |`-]*(?P<text>[^ |`].*(?:\berror: |note: expanded code originates here).*)$")
FATAL = re.compile(r"(?:Fatal error|Precondition failed|unexpected signal code|AddressSanitizer:|ThreadSanitizer:)")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
MARK = re.compile(r"[◇✔✘➜━] (?:Test|Suite) ")


def cut(text, columns=LINE_COLUMNS):
    """At most `columns` of the text in one line: its beginning, and its end, where messages say what they are about."""
    text = " ".join(text.split())
    if len(text) <= columns:
        return text
    tail = columns // 3
    return text[: columns - tail - 3] + " … " + text[-tail:]


class Issue:
    """What went wrong in one place: the expectation, and what the test says about it."""

    def __init__(self, head):
        self.expectation = [head]
        self.comment = []

    def add(self, line):
        lines = self.comment if self.comment or line.startswith("↳ ") else self.expectation
        if len(lines) < ISSUE_LINES:
            lines.append(line.removeprefix("↳ "))

    def text(self, columns):
        """At most `columns`: of a long expectation there is less where a comment follows it."""
        comment = " ".join(self.comment)
        room = columns - min(len(comment), columns // 2) if comment else columns
        head = cut(" ".join(self.expectation), room)
        return cut(head + " " + comment, columns)


class Run:
    """What the lines of a run say."""

    def __init__(self):
        self.seconds = {}
        self.failed = {}  # name: its issues, in order
        self.open = {}
        self.errors = []
        self.fatal = []
        self.closing = None
        self.issue = None

    def read(self, line):
        text = COLOUR.sub("", line.rstrip("\n"))
        if mark := MARK.search(text):
            text = text[mark.start():]  # Something printed before it did not end its line.
        else:
            if self.issue is not None and text:
                self.issue.add(text)
            if FATAL.search(text) and text not in self.fatal:
                self.fatal.append(text)
            elif (match := COMPILER_ERROR.match(text)) and match["text"] not in self.errors:
                self.errors.append(match["text"])
            return
        self.issue = None
        if match := ISSUE.match(text):
            case = f" ({match['case'].strip()})" if match["case"] else ""
            self.issue = Issue(f"{match['where']}:{case} {match['text'].removesuffix('Issue recorded')}")
            self.failed.setdefault(match["name"], []).append(self.issue)
        elif match := ENDED.match(text):
            self.open.pop(match["name"], None)
            self.seconds[match["name"]] = float(match["seconds"])
            if match["word"] == "failed":
                self.failed.setdefault(match["name"], [])
        elif match := STARTED.match(text):
            self.open[match["name"]] = True
        elif match := SKIPPED.match(text):
            self.open.pop(match["name"], None)
        elif CLOSING.match(text):
            self.closing = text

    def blocks(self, lines_per_issue):
        """A block of lines for each test that failed: its name, then its issues."""
        columns = LINE_COLUMNS - 4
        blocks = []
        for name, issues in self.failed.items():
            block = [cut(f"✘ {name}" + (f" ({self.seconds[name]:.1f} s)" if name in self.seconds else ""))]
            for issue in issues:
                text = issue.text(columns * lines_per_issue)
                block += ["    " + text[at:at + columns] for at in range(0, len(text), columns)]
            blocks.append(block)
        # Without an end of the run, what was under way is the suspect.
        if self.closing is None and self.open:
            blocks.append([cut(f"✘ {name}: begun and not ended") for name in list(self.open)[-3:]])
        notes = self.fatal[:3] + ([] if blocks else self.errors)
        return blocks + ([[cut(note) for note in notes]] if notes else [])

    def failures(self):
        """The summary of what failed, the closing line last; never more than SUMMARY_LINES."""
        room = SUMMARY_LINES - 2
        for lines_per_issue in (4, 3, 2, 1):
            blocks = self.blocks(lines_per_issue)
            if sum(map(len, blocks)) <= room:
                break
        # All names first, then as many issues as there is room for, evenly.
        depth = max((len(block) for block in blocks), default=0)
        while depth > 1 and sum(min(len(block), depth) for block in blocks) > room:
            depth -= 1
        lines = []
        for block in blocks:
            lines += block[:depth]
            if len(block) > depth > 1:
                lines[-1] = cut(lines[-1], LINE_COLUMNS - 20) + f" (+{len(block) - depth} more)"
        if len(lines) > room:
            lines = lines[: room - 1] + [f"… and {len(lines) - room + 1} more"]
        heading = f"What failed ({len(self.failed)} tests):" if self.failed else "What failed:"
        return [heading] + lines + ([self.closing] if self.closing else [])

    def slowest(self):
        """The slowest tests, the closing line last."""
        order = sorted(self.seconds.items(), key=lambda item: -item[1])[:SLOWEST]
        lines = ["The slowest tests:"] + [cut(f"{seconds:8.1f} s  {name}") for name, seconds in order]
        return lines + [self.closing]


def failed_tests(events):
    """The identifiers of the tests that failed, from the records that `swift test` wrote (JSON lines)."""
    found = []
    with open(events, encoding="utf-8") as lines:
        for line in lines:
            payload = json.loads(line)["payload"]
            if payload.get("kind") == "issueRecorded" and not payload.get("issue", {}).get("isKnown"):
                # An issue outside of any test could belong to each.
                identifier = payload.get("testID")
                if identifier not in found:
                    found.append(identifier)
    return found


def second_try(command, events):
    """Runs what failed once more, and says whether all of it passed."""
    try:
        failed = failed_tests(events)
    except (OSError, ValueError, KeyError) as error:
        print(f"no second try: {error}")
        return False
    if not 0 < len(failed) <= SECOND_TRIES or None in failed:
        return False
    if any(name.partition(".")[0] in SECOND_TRY_NEVER for name in failed):
        return False
    for name in failed:
        # Module.Suite/function()/File.swift:line:column
        name = re.sub(r"/[^/]+:\d+:\d+$", "", name)
        run = Run()
        print(f"\nA second try of {name}")
        if follow(command + ["--filter", "^" + re.escape(name) + "(/|$)"], run) != 0 or not run.seconds:
            return False
    return True


def follow(command, run):
    """Runs a command, prints what it prints and lets `run` read it; the command's exit code."""
    # In a group of its own, so that all of it can be ended.
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
        start_new_session=True)
    stall_seconds = float(os.environ.get("TEST_STALL_SECONDS", 2400))

    def stalled():
        run.fatal.append(f"nothing was printed for {stall_seconds:.0f} s, so it was ended")
        os.killpg(child.pid, signal.SIGKILL)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        watch = None
        while True:
            watch = threading.Timer(stall_seconds, stalled)
            watch.daemon = True
            watch.start()
            line = child.stdout.readline()
            watch.cancel()
            if not line:
                break
            sys.stdout.write(line)
            sys.stdout.flush()
            run.read(line)
    except KeyboardInterrupt:
        os.killpg(child.pid, signal.SIGINT)
    status = child.wait()
    return 128 - status if status < 0 else status


def main(command):
    if not command:
        print(__doc__, file=sys.stderr)
        return 2
    run = Run()
    has_second_try = os.environ.get("TEST_SECOND_TRY") == "1" and command[1:2] == ["test"]
    with tempfile.TemporaryDirectory() as folder:
        events = os.path.join(folder, "events")
        more = ["--event-stream-output-path", events, "--event-stream-version", "0"] if has_second_try else []
        status = follow(command + more, run)
        if status == 1 and run.closing and has_second_try and second_try(command, events):
            failures = run.failures()
            failures[0] = f"UNSTEADY, passed when run again alone, to be mended ({len(run.failed)} tests):"
            count = len(run.failed)
            print("\n" + "\n".join(failures) + f"\n✔ Second try: {count} of {count} tests passed", flush=True)
            return 0
    if status != 0:
        print("\n" + "\n".join(run.failures()))
    elif run.closing and run.seconds:
        print("\n" + "\n".join(run.slowest()))
    sys.stdout.flush()
    return status


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    sys.exit(main(sys.argv[1:]))
