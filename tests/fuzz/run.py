"""Runs cases in child processes that a supervisor watches: crashes, hangs and untyped errors are findings.

Making what all cases start from takes seconds, so it is done once per job, in a nursery: a process that forks a child
for each range of cases.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import mmap
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import ROOT
from tests.fuzz.watch import FAST, RUN_BYTES, SANITIZED, Finding, address_space

HANG_S = 60.0
SLOW_CPU_S = 5.0
CHUNK = 10_000

Histogram = Counter[tuple[str, str]]  # by format and outcome


def child(first: int, count: int, seed: int, only: str | None, progress: str) -> None:
    """Runs cases, writing the number of each before it into the file `progress`, and the histogram as the last line."""
    from tests.fuzz.cases import run_case

    if not SANITIZED:
        limit = address_space() + RUN_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    outcomes: Histogram = Counter()
    with open(progress, "r+b") as file, mmap.mmap(file.fileno(), 8) as shown:
        for number in range(first, first + count):
            shown[:] = struct.pack("<q", number)
            try:
                begin = time.process_time()
                name, outcome = run_case(number, seed, only)
                outcomes[name, outcome] += 1
                if time.process_time() - begin > SLOW_CPU_S and not SANITIZED:
                    raise Finding(f"[{name}] took {time.process_time() - begin:.1f} s ({outcome})")
            except Finding as finding:
                print(f"FINDING case {number} seed {seed}: {finding}", flush=True)
                outcomes["any", "FINDING"] += 1
        shown[:] = struct.pack("<q", first + count)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps({"peak": peak, "outcomes": [[*key, n] for key, n in outcomes.items()]}), flush=True)


def nursery() -> None:
    """Prepares, then forks a child for each line of stdin: first, count, seed, format, progress and output file.

    Says `ready`, then for each child its process number, and how it ended.
    """
    from tests.fuzz.cases import prepare

    faulthandler.enable()
    prepare()
    print("ready", flush=True)
    for line in sys.stdin:
        first, count, seed, only, progress, output = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with open(output, "wb") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                child(first, count, seed, only, progress)
                code = 0
            finally:
                sys.stdout.flush()
                if code:
                    traceback.print_exc()
                os._exit(code)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def tree_digest() -> str:
    """Of the sources and built modules: a run is one run if they stay as they are."""
    digest = hashlib.sha256()
    for folder in ("vmcore", "pyvm", "tests/fuzz"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".pyx", ".pxd", ".h", ".c", ".so"):
                digest.update(str(path.relative_to(ROOT)).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


class Supervisor:
    """Hands ranges of cases to child processes; a crashed or hung one is replaced behind the case that did it."""

    def __init__(
        self, seed: int, only: str | None = None, report: Callable[[str], None] = print, folder: Path | None = None
    ) -> None:
        self.seed, self.only, self.report, self.folder = seed, only, report, folder
        self.findings: list[str] = []
        self.finished: set[tuple[int, int]] = set()
        self.state: Path | None = None
        self.outcomes: Histogram = Counter()
        self.peak = 0
        self.done = 0
        self.seconds, self._begin, self._tree = 0.0, time.monotonic(), ""
        self._lock = threading.Lock()

    def run(self, first: int, cases: int, jobs: int = 1, seconds: float | None = None) -> bool:
        """All cases from `first` on that are not done yet; False if `seconds` ended before they did."""
        chunk = min(CHUNK, -(-cases // jobs))
        ranges = [(at, min(at + chunk, first + cases)) for at in range(first, first + cases, chunk)]
        waiting = iter([one for one in ranges if one not in self.finished])
        stop = time.monotonic() + seconds if seconds is not None else None

        def work() -> None:
            with self._nursery() as process:
                while stop is None or time.monotonic() < stop:
                    with self._lock:
                        one = next(waiting, None)
                    if one is None:
                        return
                    self._range(process, *one)

        threads = [threading.Thread(target=work) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return all(one in self.finished for one in ranges)

    @contextmanager
    def _nursery(self) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.run", "nursery"]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"the templates could not be made: exit code {process.wait()}")
            yield process
        finally:
            process.communicate()  # the end of its input ends it

    def _range(self, process: subprocess.Popen[str], first: int, end: int) -> None:
        number = first
        with tempfile.NamedTemporaryFile(dir=FAST) as progress, tempfile.NamedTemporaryFile(dir=FAST) as output:
            while number < end:
                progress.seek(0)
                progress.write(struct.pack("<q", number))
                progress.flush()
                text, code = self._watch(process, number, end - number, progress.name, output.name)
                at: int = struct.unpack("<q", Path(progress.name).read_bytes())[0]
                with self._lock:
                    self._note(number, at, text, code)
                number = at if code == 0 else at + 1
        with self._lock:
            self.finished.add((first, end))
            if self.state is not None:
                self._keep(self.state)

    def _watch(
        self, process: subprocess.Popen[str], first: int, count: int, progress: str, output: str
    ) -> tuple[str, int]:
        """Has a child run; its output and exit code. One that stays at a case for too long is ended."""
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([first, count, self.seed, self.only, progress, output]) + "\n")
        process.stdin.flush()
        pid = int(process.stdout.readline())
        before, since, text = -1, time.monotonic(), ""
        limit = HANG_S * (5 if SANITIZED else 1)
        while not select.select([process.stdout], [], [], 5)[0]:
            now = struct.unpack("<q", Path(progress).read_bytes())[0]
            if now != before:
                before, since = now, time.monotonic()
            elif time.monotonic() - since > limit:
                text = f"no progress for {limit:.0f} s\n"
                os.kill(pid, signal.SIGABRT)  # faulthandler prints where
                if not select.select([process.stdout], [], [], 10)[0]:
                    os.kill(pid, signal.SIGKILL)
                break
        code = int(process.stdout.readline())
        return text + Path(output).read_text(errors="replace"), code

    def _note(self, first: int, at: int, output: str, code: int) -> None:
        lines = output.strip().splitlines()
        found = [line for line in lines if line.startswith("FINDING")]
        numbers = [int(line.split()[2]) for line in found]
        if code == 0:
            summary = json.loads(lines[-1])
            self.peak = max(self.peak, summary["peak"])
            self.outcomes.update({(name, outcome): n for name, outcome, n in summary["outcomes"]})
        else:
            text = "\n".join(lines[:60])
            found.append(f"CRASH case {at} seed {self.seed}: the child ended with {code}\n{text}")
            numbers.append(at)
            self.outcomes["any", "CRASH"] += 1
            at += 1
        self.done += at - first
        for number, text in zip(numbers, found, strict=True):
            self.findings.append(text + self._saved(number))
        self.report(f"{self.done} cases, {len(self.findings)} findings, peak {self.peak} MB")

    def _saved(self, number: int) -> str:
        """Saves the case, which is only made and not run; says where, and how to run it again."""
        again = f"python -m tests.fuzz --seed {self.seed} --first {number} --cases 1"
        again += f" --format {self.only}" if self.only else ""
        if self.folder is None:
            return f"\n  again: {again}"
        args = [str(number), str(self.seed), self.only or "-", str(self.folder)]
        command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.run", "save", *args]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        return f"\n  again: {again}\n  input: {done.stdout.strip() or done.stderr.strip()[-200:]}"

    def resume(self, path: Path) -> None:
        """Goes on from what the file says, and keeps it up to date. Raises ValueError for the file of another run."""
        self.state, self._tree = path, tree_digest()
        if path.exists():
            kept = json.loads(path.read_text())
            if (kept["seed"], kept["only"], kept["tree"]) != (self.seed, self.only, self._tree):
                raise ValueError(f"{path} is of another seed, format or tree; a run goes on only where it began")
            self.findings, self.peak, self.done = kept["findings"], kept["peak"], kept["done"]
            self.finished = {(first, end) for first, end in kept["finished"]}
            self.outcomes = Counter({(name, outcome): n for name, outcome, n in kept["outcomes"]})
            self.seconds = kept["seconds"]

    def _keep(self, path: Path) -> None:
        """Writes the state; the caller holds the lock."""
        kept = {
            "seed": self.seed, "only": self.only, "tree": self._tree, "findings": self.findings, "peak": self.peak,
            "done": self.done, "finished": sorted(self.finished), "seconds": self.elapsed(),
            "outcomes": [[*key, n] for key, n in self.outcomes.items()],
        }  # fmt: skip
        temporary = path.with_suffix(path.suffix + ".tmp")
        temporary.write_text(json.dumps(kept))
        temporary.replace(path)

    def elapsed(self) -> float:
        """Seconds that the run took so far, in all its parts."""
        return self.seconds + time.monotonic() - self._begin

    def table(self) -> str:
        """The histogram as text: a line per format, outcomes by how often they came."""
        names = dict.fromkeys(name for name, _ in self.outcomes)
        lines = []
        for name in sorted(names):
            own = Counter({outcome: n for (format_name, outcome), n in self.outcomes.items() if format_name == name})
            texts = ", ".join(f"{outcome} {n}" for outcome, n in own.most_common())
            lines.append(f"{name:8} {own.total():8}  {texts}")
        return "\n".join(lines)


def save(number: int, seed: int, only: str | None, folder: Path) -> Path:
    """Writes the content of a case into a file."""
    from tests.fuzz.cases import FORMATS, make_case

    name, case, _ = make_case(number, seed, only)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{seed}-{number}.{FORMATS[name].suffix}"
    path.write_bytes(FORMATS[name].save(case))
    return path


if __name__ == "__main__":
    if sys.argv[1] == "save":
        number, seed, only, folder = sys.argv[2:]
        print(save(int(number), int(seed), None if only == "-" else only, Path(folder)))
    else:
        nursery()
