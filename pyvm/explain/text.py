"""An explanation as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from . import sizes
from .model import Explanation, FunctionExplanation, Instruction
from .sizes import Size


def count_text(n: float) -> str:
    """`1234567` as `1.23 M`."""
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(n) >= scale:
            return f"{n / scale:.3g} {unit}" if abs(n) < 999.5 * scale else f"{n / scale:.0f} {unit}"
    return f"{n:.0f}"


def bytes_text(n: int) -> str:
    """`1536` as `1.5 KiB`."""
    size = float(n)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}" if size < 100 else f"{size:.0f} {unit}"
        size /= 1024
    return ""


def time_text(ns: float) -> str:
    """`1234` as `1.23 us`."""
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= scale:
            return f"{ns / scale:.3g} {unit}" if ns < 999.5 * scale else f"{ns / scale:.0f} {unit}"
    return f"{ns:.0f} ns"


def size_text(explanation: Explanation, size: Size, *, is_bytes: bool = False) -> str:
    """A size for people: a number, an expression, or `?`."""
    number = explanation.number(size)
    if number is not None:
        return bytes_text(number) if is_bytes else count_text(number)
    return "?" if size is None else str(size)


def rate_text(i: Instruction, explanation: Explanation) -> str:
    """GFLOP/s and GB/s of a measured instruction."""
    if not i.self_ns or not i.calls:
        return ""
    parts = []
    for size, unit in ((i.flops, "GFLOP/s"), (i.bytes_moved, "GB/s")):
        number = explanation.number(size)
        if number:
            parts.append(f"{number * i.calls / i.self_ns:.3g} {unit}")
    return ", ".join(parts)


def _table(rows: list[Sequence[str]], right: set[int]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _clean(text: str) -> str:
    """`text` without what would steer a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" if ord(c) < 256 else "?" for c in text)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def as_text(explanation: Explanation, all_instructions: bool) -> str:
    """The tables of every function."""
    lines = [
        f"{_clean(explanation.name)}: {explanation.n_constants} constants, {bytes_text(explanation.constants_bytes)}"
    ]
    if explanation.problem:
        lines.append(f"does not verify: {_clean(explanation.problem)}")
    for function in explanation.functions:
        lines += ["", *_function(explanation, function, all_instructions)]
    return "\n".join(lines)


def _function(explanation: Explanation, function: FunctionExplanation, all_instructions: bool) -> list[str]:
    params = ", ".join(f"{name}: {value}" for name, value in function.params)
    lines = [_clean(f"@{function.name}({params}) -> {function.results}")]
    totals, memory = function.totals(), function.memory(explanation.dims)
    parts = [f"{len(function.instructions)} instructions", f"{size_text(explanation, totals.flops)} FLOP"]
    if totals.macs != 0:
        parts[-1] += f" ({size_text(explanation, totals.macs)} MAC)"
    if totals.flops_unknown:
        parts[-1] += f" + {totals.flops_unknown} unknown"
    parts.append(f"{size_text(explanation, sizes.add(totals.bytes_read, totals.bytes_written), is_bytes=True)} moved")
    lines.append("  " + ", ".join(parts) + (" (each instruction once)" if function.has_control_flow else ""))
    if memory.arena_bytes and memory.ratio is not None:
        lines.append(
            f"  arena {bytes_text(memory.arena_bytes)}, lower bound {bytes_text(memory.arena_lower_bound)} "
            f"({memory.ratio:.3f}x); without reuse {bytes_text(memory.without_reuse)}"
        )
    if memory.unknown:
        needed = ", ".join(f"{name}=N" for name in function.symbols) or "more"
        lines.append(f"  {memory.unknown} storages depend on {needed}")
    elif memory.peak_bytes != memory.arena_bytes:
        lines.append(
            f"  memory at most {bytes_text(memory.peak_bytes)} held, {bytes_text(memory.lower_bound)} alive at one time"
        )
    if totals.self_ns is not None:
        lines.append(f"  measured {time_text(totals.self_ns)}")
    shown = [i for i in function.instructions if all_instructions or i.is_work]
    hidden = len(function.instructions) - len(shown)
    timed = totals.self_ns is not None
    rows: list[Sequence[str]] = [
        ("pc", "what", "result", "FLOP", "moved", *(("time", "rate") if timed else ()), "source", "why")
    ]
    for i in shown:
        out = ", ".join(o.text for o in i.outputs) or i.result
        row = [str(i.pc), i.kernel, out]
        row += [size_text(explanation, i.flops), size_text(explanation, i.bytes_moved, is_bytes=True)]
        if timed:
            row += [time_text(i.self_ns) if i.self_ns is not None else "", rate_text(i, explanation)]
        row += [_short(i.source or "", 40), _short("; ".join(i.why), 100)]
        rows.append([_short(_clean(cell), 104) for cell in row])
    if len(rows) > 1:
        lines += ["  " + line for line in _table(rows, {0, 3, 4, 5, 6} if timed else {0, 3, 4})]
    if hidden:
        lines.append(f"  ({hidden} more that allocate, check and compute shapes)")
    return lines
