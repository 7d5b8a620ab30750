"""Measurements of a virtual machine: repeated timing, and the time of every Call of one run."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyvm.executable import VMExecutable
from vmcore.errors import ArgumentValueError
from vmcore.machine import Machine
from vmcore.objects import Tensor


@dataclass(frozen=True)
class TimeResult:
    """Seconds per call, one figure per measurement."""

    results: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.results)

    @property
    def median(self) -> float:
        return statistics.median(self.results)

    @property
    def min(self) -> float:
        return min(self.results)

    @property
    def max(self) -> float:
        return max(self.results)

    @property
    def std(self) -> float:
        """Population standard deviation."""
        return statistics.pstdev(self.results)

    def __str__(self) -> str:
        fields = ("mean", "median", "min", "max", "std")
        return "  ".join(f"{name} {format_seconds(getattr(self, name))}" for name in fields)


def format_seconds(seconds: float) -> str:
    """`seconds` in the unit that reads best."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3f} {unit}"
    return f"{seconds / 1e-9:.1f} ns"


def time_calls(call: Callable[[], Any], number: int, repeat: int, min_repeat_ms: int) -> TimeResult:
    """Times `call`: one warm-up, then `repeat` measurements of `number` calls each.

    Raises ArgumentValueError if `number` or `repeat` is less than 1.
    """
    if number < 1 or repeat < 1:
        raise ArgumentValueError(f"time_evaluator: number and repeat must be at least 1, got {number} and {repeat}")
    call()
    results = []
    for _ in range(repeat):
        while True:
            begin = time.perf_counter()
            for _ in range(number):
                call()
            elapsed = time.perf_counter() - begin
            if elapsed * 1e3 >= min_repeat_ms:
                break
            number = max(number + 1, int(number * min(10.0, 1.2 * min_repeat_ms / max(elapsed * 1e3, 1e-6))))
        results.append(elapsed / number)
    return TimeResult(tuple(results))


@dataclass(frozen=True)
class CallRecord:
    """One executed Call instruction; times in ns since the first one started."""

    pc: int
    name: str
    source: str | None
    start_ns: int
    end_ns: int
    depth: int
    thread: int
    args: tuple[str, ...]


class Profile:
    """The Calls of one run in the order they ended.

    Attributes
    ----------
    records : list of CallRecord
    result : object
        What the run returned.
    """

    def __init__(self, records: list[CallRecord], result: Any) -> None:
        self.records = records
        self.result = result

    def by_name(self) -> list[tuple[str, int, int]]:
        """(callee, number of calls, total ns), most expensive first."""
        sums: dict[str, list[int]] = {}
        for record in self.records:
            entry = sums.setdefault(record.name, [0, 0])
            entry[0] += 1
            entry[1] += record.end_ns - record.start_ns
        return sorted(((name, n, ns) for name, (n, ns) in sums.items()), key=lambda row: -row[2])

    def table(self, limit: int = 20) -> str:
        """The most expensive callees as text."""
        outermost = sum(r.end_ns - r.start_ns for r in self.records if r.depth == 0) or 1
        lines = [f"{'callee':<40} {'calls':>7} {'total us':>12} {'share':>7}"]
        for name, n, ns in self.by_name()[:limit]:
            lines.append(f"{name:<40} {n:>7} {ns / 1e3:>12.1f} {100 * ns / outermost:>6.1f}%")
        return "\n".join(lines)

    def as_json(self) -> str:
        """All records as JSON."""
        return json.dumps([record.__dict__ for record in self.records])

    def as_chrome_trace(self) -> str:
        """The run in the trace event format of Chrome and Perfetto; VM calls nest."""
        events = [
            {
                "name": r.name,
                "ph": "X",
                "ts": r.start_ns / 1e3,
                "dur": (r.end_ns - r.start_ns) / 1e3,
                "pid": 0,
                "tid": r.thread,
                "args": {"pc": r.pc, "source": r.source, "args": list(r.args)},
            }
            for r in self.records
        ]
        return json.dumps({"traceEvents": events, "displayTimeUnit": "ns"})

    def __str__(self) -> str:
        return self.table()


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype}({', '.join(map(str, value.shape))})"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def profile_calls(machine: Machine, executable: VMExecutable, call: Callable[[], Any]) -> Profile:
    """Runs `call` with the profiler of `machine` on."""
    records: list[CallRecord] = []
    first: list[int] = []

    def record(pc: int, index: int, start_ns: int, end_ns: int, depth: int, args: list[Any]) -> None:
        if not first:
            first.append(start_ns)
        begin = min(first[0], start_ns)
        records.append(
            CallRecord(
                pc,
                executable.functions[index].name,
                executable.debug[pc],
                start_ns - begin,
                end_ns - begin,
                depth,
                threading.get_ident(),
                tuple(map(_brief, args)),
            )
        )

    with machine.profile_lock:  # one profile at a time; inside a profiled call, the inner one takes over
        before = machine.set_profiler(record)
        try:
            result = call()
        finally:
            machine.set_profiler(before)
    return Profile(records, result)
