"""Runs cases in child processes that a supervisor watches: crashes, hangs and untyped errors are findings."""

from __future__ import annotations

import faulthandler
import json
import mmap
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests import ROOT
from tests.fuzz.watch import RUN_BYTES, SANITIZED, Finding, address_space

HANG_S = 60.0
SLOW_CPU_S = 5.0
CHUNK = 10_000

Histogram = Counter[tuple[str, str]]  # by format and outcome


def child(first: int, count: int, seed: int, only: str | None, progress: str) -> None:
    """Runs cases, writing the number of each before it into the file `progress`, and the histogram as the last line."""
    faulthandler.enable()
    from tests.fuzz.cases import prepare, run_case

    prepare()
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


class Supervisor:
    """Hands ranges of cases to child processes; a crashed or hung one is replaced behind the case that did it."""

    def __init__(
        self, seed: int, only: str | None = None, report: Callable[[str], None] = print, folder: Path | None = None
    ) -> None:
        self.seed, self.only, self.report, self.folder = seed, only, report, folder
        self.findings: list[str] = []
        self.outcomes: Histogram = Counter()
        self.peak = 0
        self.done = 0
        self._lock = threading.Lock()

    def run(self, first: int, cases: int, jobs: int = 1) -> None:
        """All cases from `first` on."""
        chunk = min(CHUNK, -(-cases // jobs))
        starts = iter(range(first, first + cases, chunk))

        def work() -> None:
            while True:
                with self._lock:
                    start = next(starts, None)
                if start is None:
                    return
                self._range(start, min(start + chunk, first + cases))

        threads = [threading.Thread(target=work) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _range(self, number: int, end: int) -> None:
        with tempfile.NamedTemporaryFile() as progress:
            while number < end:
                progress.seek(0)
                progress.write(struct.pack("<q", number))
                progress.flush()
                output, code = self._watch(number, end - number, progress.name)
                at: int = struct.unpack("<q", Path(progress.name).read_bytes())[0]
                with self._lock:
                    self._note(number, at, output, code)
                number = at if code == 0 else at + 1

    def _watch(self, first: int, count: int, progress: str) -> tuple[str, int]:
        """Runs a child; its output and exit code. One that stays at a case for too long is ended."""
        args = [str(first), str(count), str(self.seed), self.only or "-", progress]
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.fuzz.run", *args],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        before, since = -1, time.monotonic()
        limit = HANG_S * (5 if SANITIZED else 1)
        while True:
            try:
                return process.communicate(timeout=5)[0], process.returncode
            except subprocess.TimeoutExpired:
                now = struct.unpack("<q", Path(progress).read_bytes())[0]
                if now != before:
                    before, since = now, time.monotonic()
                elif time.monotonic() - since > limit:
                    process.send_signal(signal.SIGABRT)  # faulthandler prints where
                    try:
                        output = process.communicate(timeout=10)[0]
                    except subprocess.TimeoutExpired:
                        process.kill()
                        output = process.communicate()[0]
                    return f"no progress for {limit:.0f} s\n{output}", process.returncode or -6

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
        first, count, seed, only, progress = sys.argv[1:]
        child(int(first), int(count), int(seed), None if only == "-" else only, progress)
