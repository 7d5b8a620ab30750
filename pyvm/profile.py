"""Measurements of a virtual machine: repeated timing, and the time of every Call of one run."""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pyvm.executable import VM_FUNC, VMExecutable
from vmcore import arguments
from vmcore.machine import Machine
from vmcore.objects import Tensor


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        return f"TimeResult({len(self.results)} measurements: {self})"


def format_seconds(seconds: float) -> str:
    """`seconds` in the unit that reads best."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3f} {unit}"
    return f"{seconds / 1e-9:.1f} ns"


def time_calls(call: Callable[[], Any], number: int, repeat: int, min_repeat_ms: float) -> TimeResult:
    """Times `call`: one warm-up, then `repeat` measurements of `number` calls each; both are at least 1."""
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
    """One executed Call instruction; times in ns since the run began.

    Attributes
    ----------
    pc : int
    function : str
        Whose instruction it is.
    name : str
        The callee.
    source : str or None
        The source operator, where the executable knows it.
    start_ns, end_ns : int
    allocated_bytes : int
        Of storages that were requested meanwhile, also by nested calls.
    depth : int
        Nesting of VM calls.
    thread : int
    args : tuple of str
        Tensors by element type and shape, other values as they print.
    result : str
    """

    pc: int
    function: str
    name: str
    source: str | None
    start_ns: int
    end_ns: int
    allocated_bytes: int
    depth: int
    thread: int
    args: tuple[str, ...]
    result: str


@dataclass
class InstructionSummary:
    """All executions of one Call instruction. `self_ns` leaves out the Calls that ran inside it."""

    function: str
    pc: int
    name: str
    source: str | None
    args: tuple[str, ...]
    calls: int = 0
    total_ns: int = 0
    self_ns: int = 0
    allocated_bytes: int = 0


class Profile:
    """The Calls of one run in the order they ended.

    Attributes
    ----------
    name : str
        The function that was run.
    records : list of CallRecord
    total_ns : int
        Of the whole run, what the profiler takes included.
    result : object
        What the run returned.
    """

    def __init__(self, name: str, records: list[CallRecord], total_ns: int, result: Any) -> None:
        self.name = name
        self.records = records
        self.total_ns = total_ns
        self.result = result

    def by_name(self) -> list[tuple[str, int, int]]:
        """(callee, number of calls, total ns), most expensive first."""
        sums: dict[str, list[int]] = {}
        for record in self.records:
            entry = sums.setdefault(record.name, [0, 0])
            entry[0] += 1
            entry[1] += record.end_ns - record.start_ns
        return sorted(((name, n, ns) for name, (n, ns) in sums.items()), key=lambda row: -row[2])

    def by_instruction(self) -> list[InstructionSummary]:
        """One entry per Call instruction, by its own time, most expensive first. Shapes are those of its first run."""
        inner = self._inner_ns()
        rows: dict[int, InstructionSummary] = {}
        for record, inside in zip(self.records, inner, strict=True):
            row = rows.get(record.pc)
            if row is None:
                row = InstructionSummary(record.function, record.pc, record.name, record.source, record.args)
                rows[record.pc] = row
            row.calls += 1
            row.total_ns += record.end_ns - record.start_ns
            row.self_ns += record.end_ns - record.start_ns - inside
            row.allocated_bytes += record.allocated_bytes
        return sorted(rows.values(), key=lambda row: -row.self_ns)

    def _inner_ns(self) -> list[int]:
        """Per record, the time of the Calls directly inside it. Records are in the order in which they ended."""
        inner = [0] * len(self.records)
        open_by_thread: dict[int, list[int]] = {}  # records that no later one contains so far
        for i, record in enumerate(self.records):
            waiting = open_by_thread.setdefault(record.thread, [])
            while waiting and self.records[waiting[-1]].start_ns >= record.start_ns:
                child = self.records[waiting.pop()]
                inner[i] += child.end_ns - child.start_ns
            waiting.append(i)
        return inner

    _COLUMNS = ("instruction", "callee", "calls", "total us", "self us", "share", "bytes", "arguments", "source")

    def _rows(self, limit: int) -> list[tuple[str, ...]]:
        summaries = self.by_instruction()
        whole = sum(row.self_ns for row in summaries) or 1
        return [
            (
                f"@{row.function} {row.pc}",
                row.name,
                str(row.calls),
                f"{row.total_ns / 1e3:.1f}",
                f"{row.self_ns / 1e3:.1f}",
                f"{100 * row.self_ns / whole:.1f}%",
                str(row.allocated_bytes),
                ", ".join(row.args),
                row.source or "",
            )
            for row in summaries[:limit]
        ]

    def table(self, limit: int = 20) -> str:
        """The most expensive instructions as text."""
        limit = arguments.integer("table", "limit", limit, 0)
        rows = [self._COLUMNS, *self._rows(limit)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self._COLUMNS))]
        lines = []
        for row in rows:
            cells = [
                cell.rjust(width) if 2 <= i <= 6 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """The table for `rich.print`."""
        yield self._rich_table(20, options.max_width)

    def _rich_table(self, limit: int, width: int) -> Any:
        from rich.table import Table

        table = Table(title=f"{self.name}: {self.total_ns / 1e3:.1f} us")
        arguments = self._COLUMNS.index("arguments")
        shown = [i for i in range(len(self._COLUMNS)) if i != arguments or width >= 140]  # as many as fit
        for i in shown:
            table.add_column(self._COLUMNS[i], justify="right" if 2 <= i <= 6 else "left", no_wrap=i < 7)
        for row in self._rows(limit):
            table.add_row(*(row[i] if len(row[i]) <= 60 else row[i][:57] + "..." for i in shown))
        return table

    def show(self, limit: int = 20) -> None:
        """Prints the table, in colour and fitted to the terminal where there is one and `rich` is installed."""
        limit = arguments.integer("show", "limit", limit, 0)
        if not sys.stdout.isatty() or importlib.util.find_spec("rich") is None:
            print(self.table(limit))
        else:
            from rich.console import Console

            console = Console()
            console.print(self._rich_table(limit, console.width))

    def as_json(self) -> str:
        """All records as JSON."""
        return json.dumps([asdict(record) for record in self.records])

    def as_chrome_trace(self) -> str:
        """The run in the trace event format of Chrome and Perfetto; VM calls nest."""
        thread = threading.get_ident()
        events: list[dict[str, Any]] = [
            {"name": self.name, "ph": "X", "ts": 0.0, "dur": self.total_ns / 1e3, "pid": 0, "tid": thread, "args": {}}
        ]
        for r in self.records:
            details = {
                "pc": r.pc,
                "function": r.function,
                "source": r.source,
                "args": list(r.args),
                "result": r.result,
                "bytes": r.allocated_bytes,
            }
            begin, duration = r.start_ns / 1e3, (r.end_ns - r.start_ns) / 1e3
            events.append(
                {"name": r.name, "ph": "X", "ts": begin, "dur": duration, "pid": 0, "tid": r.thread, "args": details}
            )
        return json.dumps({"traceEvents": events, "displayTimeUnit": "ns"})

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"Profile({self.name}: {len(self.records)} calls in {format_seconds(self.total_ns / 1e9)})"


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype}({', '.join(map(str, value.shape))})"
    if type(value) is tuple:
        return f"({', '.join(map(_brief, value))})"
    text = repr(value) if type(value).__repr__ is not object.__repr__ else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def profile_calls(machine: Machine, executable: VMExecutable, name: str, call: Callable[[], Any]) -> Profile:
    """Runs `call`, the function `name`, with the profiler of `machine` on."""
    records: list[CallRecord] = []
    ranges = [info for info in executable.functions if info.kind == VM_FUNC]
    owner = {pc: info.name for info in ranges for pc in range(info.start_instr, info.end_instr)}

    def record(
        pc: int, index: int, start_ns: int, end_ns: int, depth: int, allocated: int, args: list[Any], result: Any
    ) -> None:
        records.append(
            CallRecord(
                pc,
                owner[pc],
                executable.functions[index].name,
                executable.debug[pc],
                start_ns - begin,
                end_ns - begin,
                allocated,
                depth,
                threading.get_ident(),
                tuple(map(_brief, args)),
                _brief(result),
            )
        )

    with machine.profile_lock:  # one profile at a time; inside a profiled call, the inner one takes over
        begin = time.monotonic_ns()  # the clock of the records; before other threads' calls reach `record`
        before = machine.set_profiler(record)
        try:
            result = call()
        finally:
            total = time.monotonic_ns() - begin
            machine.set_profiler(before)
    return Profile(name, records, total, result)
