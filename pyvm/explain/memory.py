"""Buffers: where the tensors of a function lie, and from when until when what is in them matters."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pyvm.transform.packing import aligned, most_alive

from . import sizes
from .costs import Work
from .facts import FunctionFacts, Step
from .model import Buffer, MemoryFigures, Storage
from .sizes import Size

if TYPE_CHECKING:
    from .model import FunctionExplanation

_MAX_COMPARISONS = 4_000_000  # beyond which what paths have in common is not looked for
_KEEPERS = ("calls", "other")  # what a callee may keep a reference to


def find_buffers(
    facts: FunctionFacts, works: Mapping[int, Work], names: Mapping[int, str], arena_bytes: int | None
) -> tuple[dict[int, Buffer], dict[int, Storage]]:
    """Buffers and storages of a function.

    Parameters
    ----------
    works : mapping
        Instruction -> what its call does.
    names : mapping
        Instruction -> callee.
    arena_bytes : int, optional
        Size of the arena, where the compiler noted it.
    """
    buffers: dict[int, Buffer] = {}
    for pc, (storages, offset, value) in facts.allocations.items():
        where = tuple(sorted(storages))
        buffers[pc] = Buffer(pc, where, offset, value.shape, value.dtype, value.nbytes, pc, pc)
    last = facts.steps[-1].pc if facts.steps else 0
    blocks = {
        pc: Storage(pc, "storage", nbytes, pc, facts.held_until.get(pc, pc)) for pc, nbytes in facts.storages.items()
    }
    starts_with: dict[int, str] = {}  # buffer -> whether it is written or read first
    for step in facts.steps:
        _use_operands(step, works.get(step.pc), names.get(step.pc, ""), buffers, starts_with)
    _extend_over_loops(facts.steps, buffers)
    for buffer in buffers.values():
        for storage in buffer.storages:
            if storage in blocks:
                blocks[storage].buffers.append(buffer.id)
                if buffer.escapes:
                    blocks[storage].escapes = buffer.escapes
                    blocks[storage].end = last
    for block in blocks.values():
        inside = [buffers[id] for id in block.buffers]
        shared = any(b.offset != 0 for b in inside) and len(inside) > 1
        if shared or (arena_bytes is not None and block.nbytes == arena_bytes and inside):
            block.kind = "arena"
        _continue_earlier(inside, starts_with)
    sides = _other_sides(facts.steps)
    if len(sides) * (len(buffers) + len(blocks)) > _MAX_COMPARISONS:
        sides = []
    for buffer in buffers.values():
        buffer.why = _reason(buffer, blocks, buffers)
        home = blocks.get(buffer.storages[0]) if len(buffer.storages) == 1 else None
        end = home.end if buffer.escapes and home is not None else buffer.end
        buffer.spans = _spans(buffer.begin, end, sides)
    for block in blocks.values():
        block.spans = _spans(block.begin, block.end, sides)
    _merge_alternatives(list(blocks.values()), sides)
    _merge_alternatives([buffers[id] for b in blocks.values() if b.kind == "arena" for id in b.buffers], sides)
    for buffer in buffers.values():
        home = blocks.get(buffer.storages[0]) if len(buffer.storages) == 1 else None
        if home is not None and home.kind != "arena":
            buffer.spans = [span for span in buffer.spans if span[0] <= home.spans[-1][1]]
    return buffers, blocks


def _other_sides(steps: list[Step]) -> list[tuple[int, int, int]]:
    """(if, second side, end) of every If with two sides: what the first side makes does not exist in the second.

    The end is where the first side goes on, past everything where it does not.
    """
    by_pc = {step.pc: step for step in steps}
    ifs = [step for step in steps if step.opcode == "if" and step.target is not None and step.target > step.pc + 1]
    jumps = [(step.pc, step.target) for step in steps if step.target is not None and step.target > step.pc]
    if len(ifs) * len(jumps) > _MAX_COMPARISONS:
        return []
    never = steps[-1].pc + 1 if steps else 0
    sides = []
    for step in ifs:
        second = step.target
        assert second is not None
        last = by_pc.get(second - 1)
        if last is None or last.opcode not in ("goto", "ret"):
            continue  # it falls through
        after = min((target for pc, target in jumps if step.pc < pc < second <= target), default=never)
        if after > second:
            sides.append((step.pc, second, after))
    # By begin of the second side: inner Ifs come first, and lie before that.
    return sorted(sides, key=lambda side: side[1])


def _spans(begin: int, end: int, sides: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """The instructions begin .. end, without those that the program does not reach after `begin`."""
    spans = []
    for first, second, after in sides:
        if first < begin < second <= end:
            spans.append((begin, second - 1))
            begin = after
            if begin > end:
                return spans
    spans.append((begin, end))
    return spans


def _merge_alternatives(items: Sequence[Buffer | Storage], sides: list[tuple[int, int, int]]) -> None:
    """After an If, of what its sides have made only one exists: of a pair of one size, one stands for both."""
    for first, second, after in sorted(sides, key=lambda side: side[2] - side[0]):  # inner Ifs first
        lasting = [i for i in items if first < i.begin < after <= i.spans[-1][1] and i.nbytes is not None]
        others: dict[Size, list[Buffer | Storage]] = {}
        for item in lasting:
            if item.begin >= second:
                others.setdefault(item.nbytes, []).append(item)
        for item in lasting:
            found = others.get(item.nbytes) if item.begin < second else None
            if found:
                shorter = min(item, found.pop(), key=lambda one: one.spans[-1][1])
                shorter.spans = [(a, min(b, after - 1)) for a, b in shorter.spans if a < after]


def _use_operands(
    step: Step, work: Work | None, callee: str, buffers: dict[int, Buffer], starts_with: dict[int, str]
) -> None:
    written = {id(operand.arg) for operand in work.outputs} if work is not None else set()
    only_views = callee in ("vm.builtin.reshape", "vm.builtin.copy", "vm.builtin.alloc_tensor")
    for arg in step.args:
        for pc in arg.value.buffers:
            buffer = buffers.get(pc)
            if buffer is None:
                continue
            buffer.begin = min(buffer.begin, step.pc)
            buffer.end = max(buffer.end, step.pc)
            if step.opcode == "ret":
                buffer.escapes = buffer.escapes or "is returned"
            elif id(arg) in written:
                assert work is not None
                starts_with.setdefault(pc, "write")
                if not buffer.writers:
                    buffer.kernel, buffer.category = work.kernel, work.category
                _append(buffer.writers, step.pc)
            elif not only_views:
                starts_with.setdefault(pc, "read")
                _append(buffer.readers, step.pc)
                if work is not None and work.category in _KEEPERS and callee != "vm.builtin.make_tuple":
                    buffer.escapes = buffer.escapes or f"is handed to {callee}, which may keep it"


def _append(pcs: list[int], pc: int) -> None:
    if not pcs or pcs[-1] != pc:
        pcs.append(pc)


def _extend_over_loops(steps: Iterable[Step], buffers: Mapping[int, Buffer]) -> None:
    """What is used in a loop and made outside of this round matters until the loop jumps back."""
    loops = [(s.target, s.pc) for s in steps if s.target is not None and s.target <= s.pc and s.opcode == "goto"]
    if len(loops) * len(buffers) > _MAX_COMPARISONS:
        return
    for head, tail in loops:
        for buffer in buffers.values():
            used_inside = buffer.begin <= tail and buffer.end >= head
            if used_inside and (buffer.id < head or buffer.begin < buffer.id):
                buffer.end = max(buffer.end, tail)


def _continue_earlier(inside: list[Buffer], starts_with: Mapping[int, str]) -> None:
    """A buffer that is read before it is written holds what others have put at its address: they go on until then."""
    if not any(starts_with.get(b.id) == "read" for b in inside):
        return
    held: list[tuple[int, int, Buffer]] = []  # (first byte, end, who has it by now), in order, without overlaps
    for buffer in sorted(inside, key=lambda buffer: (buffer.begin, buffer.id)):
        if not isinstance(buffer.offset, int) or not isinstance(buffer.nbytes, int) or buffer.nbytes <= 0:
            continue
        low, high = buffer.offset, buffer.offset + buffer.nbytes
        first = bisect.bisect_left(held, low, key=lambda piece: piece[1] - 1)
        last = bisect.bisect_left(held, high, key=lambda piece: piece[0])
        pieces = held[first:last]
        if starts_with.get(buffer.id) == "read":
            for _, _, other in pieces:
                other.end = max(other.end, buffer.begin - 1)
                buffer.joins.append(other.id)
            if pieces:  # else it holds what another round of a loop has left
                buffer.kernel, buffer.category = "joined", "movement"
        kept = [(low, high, buffer)]
        if pieces and pieces[0][0] < low:
            kept.insert(0, (pieces[0][0], low, pieces[0][2]))
        if pieces and pieces[-1][1] > high:
            kept.append((high, pieces[-1][1], pieces[-1][2]))
        held[first:last] = kept


def _reason(buffer: Buffer, storages: Mapping[int, Storage], buffers: Mapping[int, Buffer]) -> str:
    if len(buffer.storages) != 1 or buffer.storages[0] not in storages:
        return "in memory that comes from elsewhere"
    storage = storages[buffer.storages[0]]
    if storage.kind == "arena":
        text = "in the arena: it stays inside the function"
        if not isinstance(buffer.offset, int) and buffer.offset is not None:
            text += ", at an address that follows from the sizes when the function runs"
        before = _held_before(buffer, storage, buffers)
        if before:
            text += f"; the address was held by {before} before"
        return text
    reasons = []
    if buffer.escapes:
        reasons.append(f"it {buffer.escapes}")
    if not isinstance(storage.nbytes, int) and storage.nbytes is not None:
        names = ", ".join(sorted(sizes.symbols(storage.nbytes)))
        reasons.append(f"its size depends on {names}, known when the function runs")
    elif storage.nbytes is None:
        reasons.append("its size is known when the function runs")
    text = "in a storage of its own" if len(storage.buffers) == 1 else "in a storage"
    if len(storage.buffers) > 1:
        n = len(storage.buffers) - 1
        text += f" that {n} other tensor{'s' * (n > 1)} of this size use{'s' * (n == 1)} at other times"
    return text + (": " + " and ".join(reasons) if reasons else "")


def _held_before(buffer: Buffer, storage: Storage, buffers: Mapping[int, Buffer]) -> str:
    if len(storage.buffers) > 3000 or not isinstance(buffer.offset, int) or not isinstance(buffer.nbytes, int):
        return ""
    low, high = buffer.offset, buffer.offset + buffer.nbytes
    found: list[Buffer] = []
    for id in reversed(storage.buffers):
        other = buffers[id]
        if other.end >= buffer.begin or other is buffer or other.id >= buffer.id:
            continue
        if isinstance(other.offset, int) and isinstance(other.nbytes, int):
            if other.offset < high and other.offset + other.nbytes > low:
                found.append(other)
                if len(found) == 3:
                    break
    return ", ".join(f"{b.kernel or 'a tensor'} at {b.id}" for b in found)


def memory_figures(function: FunctionExplanation, dims: Mapping[str, int]) -> MemoryFigures:
    """Sizes and lower bounds; symbols without a value make a storage unknown."""
    dims = function.resolved(dims)
    arenas: list[tuple[int, int, int]] = []
    unknown = 0
    held: list[tuple[int, int, int]] = []
    sizes_of: dict[int, int] = {}
    for storage in function.storages.values():
        nbytes = sizes.number(storage.nbytes, dims)
        if nbytes is None:
            unknown += 1
            continue
        sizes_of[storage.id] = nbytes
        held += [(*span, aligned(nbytes)) for span in storage.spans]
        if storage.kind == "arena":
            arenas += [(*span, nbytes) for span in storage.spans]
    in_arena: list[tuple[int, int, int]] = []
    alive: list[tuple[int, int, int]] = []
    total = 0
    for buffer in function.buffers.values():
        nbytes = sizes.number(buffer.nbytes, dims)
        home = function.storages.get(buffer.storages[0]) if len(buffer.storages) == 1 else None
        if nbytes is None or home is None or home.id not in sizes_of:
            continue
        spans = [(*span, aligned(nbytes)) for span in buffer.spans]
        total += aligned(nbytes)
        alive += spans
        if home.kind == "arena":
            in_arena += spans
    return MemoryFigures(_most(arenas), _most(in_arena), _most(held), _most(alive), total, unknown)


def _most(spans: list[tuple[int, int, int]]) -> int:
    """The largest sum of spans (first, last, bytes) that meet."""
    return most_alive(*zip(*spans, strict=True)) if spans else 0
