"""Packing of buffers into one arena: which offsets make it small."""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator, Sequence

import numpy as np

from vmcore.arena import place_in_order

ALIGNMENT_BYTES = 64
_MAX_SORTED = 2048  # placing in an order of one's own takes n * n steps
_CLIMB_STEPS = 40_000_000  # comparisons that looking for a better order may cost: some 0.1 s


def aligned(nbytes: int) -> int:
    """`nbytes` up to the next alignment boundary; an empty tensor takes one unit, so that it has an address."""
    return max(-(-nbytes // ALIGNMENT_BYTES), 1) * ALIGNMENT_BYTES


def most_alive(begins: Sequence[int], ends: Sequence[int], sizes: Sequence[int]) -> int:
    """The most bytes that are needed at one moment: no arena is smaller."""
    changes: dict[int, int] = {}
    for begin, end, size in zip(begins, ends, sizes, strict=True):
        changes[begin] = changes.get(begin, 0) + size
        changes[end + 1] = changes.get(end + 1, 0) - size
    alive = most = 0
    for moment in sorted(changes):
        alive += changes[moment]
        most = max(most, alive)
    return most


def pack(begins: Sequence[int], ends: Sequence[int], sizes: Sequence[int]) -> tuple[list[int], int]:
    """Offsets so that buffers that are needed at the same time do not overlap, and the bytes of all.

    Best fit in order of time always. Where that takes more than is ever alive, and there are not very many buffers,
    the best of several other orders; then orders near it are tried. The same buffers always get the same offsets.
    """
    if not sizes:
        return [], 0
    offsets, total = best_fit(begins, ends, sizes)
    least = most_alive(begins, ends, sizes)
    if total == least or len(sizes) > _MAX_SORTED:
        return offsets, total
    columns = [np.asarray(column, np.int64) for column in (begins, ends, sizes)]
    best_order, best_bytes = None, 0
    for order in _orders(*columns):
        found, bytes_of_all = place_in_order(order, *columns)
        if best_order is None or bytes_of_all < best_bytes:
            best_order, best_bytes = order, bytes_of_all
        if bytes_of_all < total:
            offsets, total = found.tolist(), bytes_of_all
        if total == least:
            return offsets, total
    assert best_order is not None
    return _climb(best_order, columns, offsets, total, least)


def _orders(begins: np.ndarray, ends: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Orders that do well on some graphs each."""
    lasting = ends - begins + 1
    yield np.lexsort((begins, -sizes))
    yield np.lexsort((begins, -sizes * lasting))
    yield np.lexsort((-sizes, -lasting))
    yield np.lexsort((-sizes, begins))
    # Moment by moment, those with the most bytes first; at each, largest first.
    moments = np.unique(begins)
    alive = (begins[None, :] <= moments[:, None]) & (ends[None, :] >= moments[:, None])
    by_breadth = np.argsort(-(alive @ sizes), kind="stable")
    rank = np.full(len(sizes), len(moments), np.int64)
    for place, moment in enumerate(by_breadth.tolist()):
        rank[alive[moment]] = np.minimum(rank[alive[moment]], place)
    yield np.lexsort((begins, -sizes, rank))


def _climb(
    order: np.ndarray, columns: list[np.ndarray], offsets: list[int], total: int, least: int
) -> tuple[list[int], int]:
    """Moves buffers that reach to the top of the arena, or meet one that does, forward in the order."""
    rng = random.Random(0)
    n = len(order)
    begins, ends, sizes = columns
    found, current = place_in_order(order, *columns)
    for _ in range(min(_CLIMB_STEPS // (n * n), 2000)):
        tops = np.flatnonzero(found + sizes == current)
        top = int(tops[rng.randrange(len(tops))])
        meets = np.flatnonzero((begins <= ends[top]) & (ends >= begins[top]))
        chosen = top if rng.random() < 0.5 else int(meets[rng.randrange(len(meets))])
        place = int(np.flatnonzero(order == chosen)[0])
        target = rng.randrange(place + 1) if rng.random() < 0.8 else rng.randrange(n)
        trial = np.insert(np.delete(order, place), target, chosen)
        trial_offsets, trial_total = place_in_order(trial, *columns)
        if trial_total <= current:  # equal ones too: they lead across plateaus
            order, found, current = trial, trial_offsets, trial_total
            if current < total:
                offsets, total = found.tolist(), current
            if total == least:
                break
    return offsets, total


def best_fit(begins: Sequence[int], ends: Sequence[int], sizes: Sequence[int]) -> tuple[list[int], int]:
    """Offsets as an allocator would give them: at each begin the smallest free gap that fits, else the end grows."""
    offsets = [0] * len(sizes)
    by_end = sorted(range(len(sizes)), key=lambda i: ends[i])
    released = 0
    gaps: list[tuple[int, int]] = []  # (size, offset), sorted
    starts: dict[int, int] = {}  # offset -> size of a gap
    stops: dict[int, int] = {}  # end of a gap -> its offset
    total = 0

    def remove(offset: int) -> int:
        size = starts.pop(offset)
        del stops[offset + size]
        del gaps[bisect.bisect_left(gaps, (size, offset))]
        return size

    def add(offset: int, size: int) -> None:
        if offset in stops:
            before = stops[offset]
            size += remove(before)
            offset = before
        if offset + size in starts:
            size += remove(offset + size)
        starts[offset] = size
        stops[offset + size] = offset
        bisect.insort(gaps, (size, offset))

    for i in sorted(range(len(sizes)), key=lambda i: begins[i]):
        while ends[by_end[released]] < begins[i]:
            done = by_end[released]
            add(offsets[done], sizes[done])
            released += 1
        size = sizes[i]
        found = bisect.bisect_left(gaps, (size, -1))
        if found < len(gaps):
            offset = gaps[found][1]
            rest = remove(offset) - size
            if rest:
                add(offset + size, rest)
        elif total in stops:  # the last gap touches the end: grow it
            offset = stops[total]
            remove(offset)
            total = offset + size
        else:
            offset = total
            total += size
        offsets[i] = offset
    return offsets, total
