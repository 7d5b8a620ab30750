"""Sizes and counts of an executable, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from vmcore.isa import Opcode, instruction_words
from vmcore.types import tensor_dtype

from .executable import PACKED_FUNC, VM_FUNC, VMTIR_FUNC

if TYPE_CHECKING:
    from .executable import VMExecutable


def stats(executable: VMExecutable) -> str:
    """What `VMExecutable.stats` returns: functions, code, constants and arenas, one line each."""
    tensors = [c for c in executable.constants if isinstance(c, np.ndarray)]
    lines = [
        f"functions: {sum(f.kind == VM_FUNC for f in executable.functions)} bytecode, "
        f"{sum(f.kind == VMTIR_FUNC for f in executable.functions)} compiled, "
        f"{sum(f.kind == PACKED_FUNC for f in executable.functions)} packed",
    ]
    for info in executable.functions:
        if info.kind != PACKED_FUNC:
            params = ", ".join(info.param_names) or str(max(info.num_args, 0))
            n_instr = info.end_instr - info.start_instr
            lines.append(f"  @{info.name}({params}): {n_instr} instructions, {info.register_file_size} registers")
    packed = [info.name for info in executable.functions if info.kind == PACKED_FUNC]
    if packed:
        lines.append("  packed: " + ", ".join(packed))
    lines.append(
        f"code: {len(executable.instr_offset)} instructions, {len(executable.instr_data)} words "
        f"({_human_bytes(8 * (len(executable.instr_data) + len(executable.instr_offset)))})"
    )
    counts = _opcode_counts(executable)
    lines.append("  " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    lines.append(
        f"constants: {len(executable.constants)}, of which {len(tensors)} tensors "
        f"({_human_bytes(sum(t.nbytes for t in tensors))})"
    )
    for t in sorted(tensors, key=lambda t: -t.nbytes)[:5]:
        lines.append(f"  {t.shape} {tensor_dtype(t)}: {_human_bytes(t.nbytes)}")
    lines += _arena_lines(executable)
    return "\n".join(lines) + "\n"


def arenas(executable: VMExecutable) -> dict[str, int | str]:
    """What `VMExecutable.arenas` returns: sizes by function, as the compiler wrote them into the metadata."""
    sizes: dict[str, int | str] = {}
    for key, value in executable.metadata.items():
        kind, _, name = key.partition(":")
        if kind == "arena_bytes":
            number = _number(value)
            sizes[name] = value if number is None else number
    return sizes


def _arena_lines(executable: VMExecutable) -> Iterator[str]:
    for name, size in arenas(executable).items():
        if not isinstance(size, int):
            yield f"arena of @{name}: {size}"
            continue
        live = _number(executable.metadata.get(f"live_bytes:{name}", ""))
        tensors = _number(executable.metadata.get(f"tensor_bytes:{name}", ""))
        line = f"arena of @{name}: {size} bytes ({_human_bytes(size)})"
        if live and tensors is not None:
            line += f", {size / live:.2f} x the most alive at once, {_human_bytes(tensors)} without sharing"
        yield line


def _opcode_counts(executable: VMExecutable) -> dict[str, int]:
    counts = {"call": 0, "ret": 0, "goto": 0, "if": 0}
    names = dict(zip((int(op) for op in Opcode), counts, strict=True))
    for offset in executable.instr_offset.tolist():
        if instruction_words(executable.instr_data, offset):
            counts[names[int(executable.instr_data[offset])]] += 1
    return counts


def _number(text: str) -> int | None:
    """The number that metadata holds; a file may hold anything there."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _human_bytes(n: int) -> str:
    value = float(n)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
