"""What a virtual machine shows of itself: its answer to instruments, the trace of an error, the books of its memory."""

from __future__ import annotations

import enum
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyvm.executable import VMExecutable

_MAX_TRACE_FRAMES = 32


class VMInstrumentReturnKind(enum.IntEnum):
    """What an instrument returns before a call."""

    NO_OP = 0
    SKIP_RUN = 1


def add_trace(executable: VMExecutable, error: BaseException, frames: Sequence[tuple[int, int]]) -> None:
    """Adds the VM traceback to `error`, innermost frame first, and its position as attributes."""
    from pyvm.asm import instruction_text

    lines = []
    for index, pc in reversed(frames):
        name = executable.functions[index].name
        if pc < 0:
            lines.append(f"in @{name}, compiled")
            continue
        source = executable.debug[pc]
        where = f"in @{name}, pc {pc}: {instruction_text(executable, pc)}"
        lines.append(where + (f"      [{source}]" if source else ""))
    if len(lines) > _MAX_TRACE_FRAMES:
        half = _MAX_TRACE_FRAMES // 2
        lines[half:-half] = [f"... {len(lines) - 2 * half} more frames"]
    if frames and not hasattr(error, "vm_frames"):
        index, pc = frames[-1]
        try:
            error.vm_frames = [(executable.functions[i].name, p) for i, p in frames]  # type: ignore[attr-defined]
        except AttributeError:
            pass  # an exception type without a dict: the notes say the same
    for line in lines:
        error.add_note(line)


def scratch_bytes() -> int:
    """Scratch memory that kernels and libraries hold; a module that was never loaded holds none."""
    modules = (sys.modules.get(name) for name in ("vmcore.kernels.workspace", "vmcore.library"))
    return sum(module.workspace_bytes() for module in modules if module is not None)


class MemoryReport(dict[str, Any]):
    """What `VirtualMachine.memory_report` returns; `str` of it is a table for people."""

    def __str__(self) -> str:
        limit = self["limit_bytes"]
        share = "" if limit is None else f"{self['peak_bytes'] / limit:.0%} of the limit"
        hits = f"{self['n_pool_hits']:,} of {self['n_allocations']:,} requests found one"
        scratch = "of the whole process"
        if self["scratch_bytes"] is not None:
            scratch += f"; {self['scratch_bytes']:,} count here"
        rows: list[tuple[str, int | None, str]] = [
            ("in use", self["live_bytes"], f"of which idle calls keep {self['idle_bytes']:,}"),
            ("kept for reuse", self["pooled_bytes"], hits),
            ("highest in use", self["peak_bytes"], share),
            ("limit", limit, ""),
            ("asked for so far", self["total_bytes"], ""),
            ("kernel scratch", self["workspace_bytes"], scratch),
        ]
        lines = [f"{name:<17}{'none' if n is None else f'{n:,} bytes':>24}  {note}".rstrip() for name, n, note in rows]
        if self["classes"]:
            lines.append(f"{'block size':<17}{'in use':>18}{'kept':>8}")
            lines += [f"{size:<17,}{live:>18,}{kept:>8,}" for size, live, kept in self["classes"]]
        return "\n".join(lines)
