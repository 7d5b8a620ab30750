"""Rows of results, the table they print as, and the JSON file they are kept in."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Target:
    """What a row should reach: a bound on its ratio, or on our own figure.

    `budget` is the goal, `floor` the part of it without which a version is not good enough.
    """

    budget: float
    floor: float | None = None
    at_least: bool = True
    of: str = "ratio"

    def met(self, row: Row, bound: float | None) -> bool | None:
        """Whether the row keeps `bound`; None when it has no such figure."""
        value = row.ratio if self.of == "ratio" else row.ours
        if value is None or bound is None:
            return None
        return value >= bound if self.at_least else value <= bound

    def bound(self, unit: str) -> str:
        """The budget in words of the table: "<= 10 ms", ">= 8x"."""
        return f"{'>=' if self.at_least else '<='} {self.budget:g}{'x' if self.of == 'ratio' else f' {unit}'}"

    def text(self, unit: str) -> str:
        """Both bounds."""
        return self.bound(unit) + (f" (floor {self.floor:g})" if self.floor is not None else "")


@dataclass
class Row:
    """One result. `ratio` is peer / ours where `target` is a speed-up, ours / peer where it is a cost."""

    name: str
    unit: str
    ours: float
    peer: str | None = None
    theirs: float | None = None
    ratio: float | None = None
    target: Target | None = None
    note: str = ""
    details: dict[str, object] = field(default_factory=dict)

    def verdict(self) -> str:
        """`ok`, `below` (above the floor, short of the budget), `MISS`, or nothing without a target."""
        if self.target is None or self.target.met(self, self.target.budget) is None:
            return ""
        if self.target.met(self, self.target.budget):
            return "ok"
        return "below" if self.target.met(self, self.target.floor) else "MISS"


@dataclass
class Section:
    """The rows of one benchmark, with what one has to know to read them."""

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The table."""
        peers = [row.peer for row in self.rows if row.peer]
        theirs = peers[0] if len(set(peers)) == 1 else "peer"
        header = ["row", theirs, "pyvm", "unit", "ratio", "budget", "", ""]
        lines = [header]
        for row in self.rows:
            lines.append(
                [
                    row.name,
                    _figure(row.theirs) + (f" {row.peer}" if theirs == "peer" and row.peer else ""),
                    _figure(row.ours),
                    row.unit,
                    "" if row.ratio is None else f"{row.ratio:.2f}",
                    "" if row.target is None else row.target.text(row.unit),
                    row.verdict(),
                    row.note,
                ]
            )
        return "\n".join([f"== {self.name}: {self.title}", *_columns(lines), *(f"   {r}" for r in self.remarks), ""])


def markdown(sections: Sequence[Section]) -> str:
    """All rows that have a budget as one Markdown table."""
    lines = ["| what | peer | pyvm | ratio | budget | met |", "|--|--|--|--|--|--|"]
    for section in sections:
        for row in section.rows:
            if row.target is None:
                continue
            peer = "" if row.theirs is None else f"{_figure(row.theirs)} {row.unit} ({row.peer})"
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            met = {"ok": "yes", "": "not measured"}.get(row.verdict(), "no")
            cells = [row.name, peer, f"{_figure(row.ours)} {row.unit}", ratio, row.target.bound(row.unit), met]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def speedup(
    name: str, unit: str, ours: float, peer: str, theirs: float, target: Target | None = None, **rest: Any
) -> Row:
    """A row whose ratio says how many times faster we are."""
    return Row(name, unit, ours, peer, theirs, theirs / ours, target, **rest)


def cost(name: str, unit: str, ours: float, peer: str, theirs: float, target: Target | None = None, **rest: Any) -> Row:
    """A row whose ratio says how many times as much we need."""
    return Row(name, unit, ours, peer, theirs, ours / theirs, target, **rest)


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _columns(lines: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if 1 <= i <= 2 or i == 4 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def machine() -> dict[str, object]:
    """The machine and the versions that the figures belong to."""
    model = ""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        model = platform.processor()
    versions = {}
    for package in ("numpy", "scipy", "apache-tvm", "onnxruntime", "onnx", "numexpr"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "load": [round(value, 2) for value in os.getloadavg()],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
    }


def save(path: Path, about: dict[str, object], sections: Sequence[Section]) -> None:
    """Writes everything as JSON."""
    kept = [asdict(section) for section in sections]
    for section, entries in zip(sections, kept, strict=True):
        for row, entry in zip(section.rows, entries["rows"], strict=True):
            entry["verdict"] = row.verdict()
    content = {"machine": about, "sections": kept}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
