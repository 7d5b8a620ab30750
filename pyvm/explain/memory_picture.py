"""The memory plan as a picture: instructions from left to right, addresses from bottom to top.

A storage is a frame as long as something holds it; the buffers in it are filled rectangles as long as what is in them
matters. What the allocator gives out at run time has no address yet and is drawn above the arena, packed. Below, the
bytes that are alive at every instruction. `page.js` draws the same again when a dimension is changed there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from . import sizes
from .escaping import esc
from .model import Buffer, FunctionExplanation, Storage
from .text import bytes_text

WIDTH, LEFT, RIGHT, TOP, PLOT, STRIP, GAP = 1160, 76, 12, 14, 330, 64, 26
HEIGHT = TOP + PLOT + GAP + STRIP + 30
MAX_BUFFERS = 4000


@dataclass
class Box:
    """A rectangle of the picture, or one with gaps: bytes upwards, spans of instructions to the right."""

    id: int
    spans: list[tuple[int, int]]
    low: int
    nbytes: int

    def meets(self, other: Box) -> bool:
        """Whether both exist at some time."""
        return any(a <= d and c <= b for a, b in self.spans for c, d in other.spans)


@dataclass
class Picture:
    """The rectangles for some values of the symbols."""

    storages: list[Box]
    buffers: list[Box]
    top: int  # highest address
    alive: list[tuple[int, int]]  # (instruction, bytes alive from there on)
    lower_bound: int
    left_out: int  # buffers that are not drawn, as their size is not known or there are too many


def compute(function: FunctionExplanation, dims: Mapping[str, int]) -> Picture:
    """Places everything."""
    dims = function.resolved(dims)
    homes: dict[int, Box] = {}
    ordered = sorted(function.storages.values(), key=lambda s: (s.kind != "arena", s.begin))
    for storage in ordered:
        nbytes = sizes.number(storage.nbytes, dims)
        if nbytes is not None and nbytes >= 0:
            homes[storage.id] = Box(storage.id, storage.spans, 0, nbytes)
    _stack(homes.values())
    boxes = []
    left_out = 0
    floating: dict[int, list[Box]] = {}
    for buffer in function.buffers.values():
        nbytes = sizes.number(buffer.nbytes, dims)
        home = homes.get(buffer.storages[0]) if len(buffer.storages) == 1 else None
        if nbytes is None or nbytes < 0 or home is None:
            left_out += 1
            continue
        offset = sizes.number(buffer.offset, dims)
        box = Box(buffer.id, buffer.spans, 0, nbytes)
        if offset is None:
            floating.setdefault(home.id, []).append(box)
        else:
            box.low = home.low + offset
        boxes.append(box)
    for home_id, group in floating.items():
        _stack(group, homes[home_id].low)
    if len(boxes) > MAX_BUFFERS:
        boxes.sort(key=lambda box: -box.nbytes * sum(b - a + 1 for a, b in box.spans))
        left_out += len(boxes) - MAX_BUFFERS
        boxes = sorted(boxes[:MAX_BUFFERS], key=lambda box: box.id)
    top = max((box.low + box.nbytes for box in (*homes.values(), *boxes)), default=0)
    alive, most = _alive(boxes)
    return Picture(list(homes.values()), boxes, top, alive, most, left_out)


def _stack(boxes: Iterable[Box], base: int = 0) -> None:
    """Puts each box at the lowest address at which nothing placed before is held at the same time."""
    placed: list[Box] = []
    for box in boxes:
        low = base
        near = sorted((other for other in placed if other.meets(box)), key=lambda other: other.low)
        for other in near[:4000]:
            if other.low - low >= box.nbytes:
                break
            low = max(low, -(-(other.low + other.nbytes) // 64) * 64)
        box.low = low
        placed.append(box)


def _alive(boxes: list[Box]) -> tuple[list[tuple[int, int]], int]:
    changes: dict[int, int] = {}
    for box in boxes:
        for begin, end in box.spans:
            changes[begin] = changes.get(begin, 0) + box.nbytes
            changes[end + 1] = changes.get(end + 1, 0) - box.nbytes
    steps, now = [], 0
    for pc in sorted(changes):
        now += changes[pc]
        steps.append((pc, now))
    return steps, max((value for _, value in steps), default=0)


def ticks(top: int) -> list[int]:
    """Round addresses for the axis, at most seven."""
    step = 1
    while top / step > 6:
        step *= 2
    return [i * step for i in range(top // step + 1)] if top else [0]


def svg(function: FunctionExplanation, dims: Mapping[str, int], key: str) -> str:
    """The picture as SVG. `key` makes its ids unique on the page."""
    picture = compute(function, dims)
    n = max(function.end - function.begin, 1)
    across = (WIDTH - LEFT - RIGHT) / n
    up = PLOT / max(picture.top, 1)

    def x(pc: int) -> float:
        return LEFT + (pc - function.begin) * across

    def y(address: float) -> float:
        return TOP + PLOT - address * up

    out = [
        f'<svg class="memory" id="memory-{key}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="memory plan: instructions from left to right, addresses from bottom to top" '
        f'xmlns="http://www.w3.org/2000/svg">'
    ]
    out.append('<g class="grid">')
    for tick in ticks(picture.top):
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{bytes_text(tick)}</text>')
    out.append("</g>")
    out.append('<g class="storages">')
    for box in picture.storages:
        tip = f"<title>{esc(storage_tip(function.storages[box.id], box.nbytes))}</title>"
        rects = _rects(box, x, y(box.low + box.nbytes), across, max(box.nbytes * up, 0.5))
        out.append(f'<g class="s {function.storages[box.id].kind}" data-s="{box.id}">{rects}{tip}</g>')
    out.append('</g><g class="buffers">')
    for box in picture.buffers:
        out.append(_buffer(function.buffers[box.id], box, x, y(box.low + box.nbytes), across, up))
    out.append("</g>")
    out += _strip(function, picture, x)
    out.append("</svg>")
    return "".join(out)


_X = Callable[[int], float]


def _rects(box: Box, x: _X, y: float, across: float, height: float) -> str:
    return "".join(
        f'<rect x="{x(begin):.2f}" y="{y:.2f}" width="{(end - begin + 1) * across:.2f}" height="{height:.2f}"/>'
        for begin, end in box.spans
    )


def _buffer(buffer: Buffer, box: Box, x: _X, y: float, across: float, up: float) -> str:
    height = max(box.nbytes * up, 0.75)
    parts = [f'<g class="b k-{buffer.category}" data-pc="{box.id}">', _rects(box, x, y, across, height)]
    label = buffer.kernel or "tensor"
    begin, end = max(box.spans, key=lambda span: span[1] - span[0])
    width = (end - begin + 1) * across
    if width > 6.4 * len(label) + 6 and height > 13:
        middle = x(begin) + width / 2
        parts.append(f'<text x="{middle:.1f}" y="{y + height / 2 + 4:.1f}" text-anchor="middle">{esc(label)}</text>')
    parts.append(f"<title>{esc(buffer_tip(buffer, box.nbytes))}</title></g>")
    return "".join(parts)


def buffer_tip(buffer: Buffer, nbytes: int) -> str:
    """What a hover says about a buffer."""
    from .values import shape_text

    lines = [f"{buffer.kernel or 'tensor'} → {buffer.dtype or '?'}{shape_text(buffer.shape)}"]
    lines.append(f"{bytes_text(nbytes)}" + (f" at {buffer.offset}" if buffer.offset not in (None, 0) else ""))
    lines.append(f"alive from {buffer.begin} to {buffer.end}" + (f", {buffer.escapes}" if buffer.escapes else ""))
    if buffer.source:
        lines.append(buffer.source[:160])
    return "\n".join(lines)


def storage_tip(storage: Storage, nbytes: int) -> str:
    """What a hover says about a storage."""
    n = len(storage.buffers)
    return (
        f"{storage.kind} {storage.id}: {bytes_text(nbytes)}, {n} tensor{'s' * (n != 1)}\n"
        f"held from {storage.begin} to {storage.end}" + (f", {storage.escapes}" if storage.escapes else "")
    )


def _strip(function: FunctionExplanation, picture: Picture, x: _X) -> list[str]:
    """Bytes alive over time, and the axis of instructions."""
    base = TOP + PLOT + GAP + STRIP
    top = max(picture.top, picture.lower_bound, 1)

    def y(nbytes: float) -> float:
        return base - STRIP * nbytes / top

    path = [f"M{x(function.begin):.1f},{base}"]
    before = 0
    for pc, nbytes in picture.alive:
        path.append(f"L{x(pc):.1f},{y(before):.1f}L{x(pc):.1f},{y(nbytes):.1f}")
        before = nbytes
    path.append(f"L{x(function.end):.1f},{y(before):.1f}L{x(function.end):.1f},{base}Z")
    bound = y(picture.lower_bound)
    out = [
        f'<g class="strip"><path d="{"".join(path)}"/>',
        f'<line class="bound" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bound:.1f}" y2="{bound:.1f}"/>',
        f'<line class="capacity" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(picture.top):.1f}" '
        f'y2="{y(picture.top):.1f}"/>',
        f'<text x="{LEFT - 8}" y="{base - STRIP / 2 + 4:.1f}" text-anchor="end">alive</text>',
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>',
    ]
    n = function.end - function.begin
    step = 1
    for candidate in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000):
        step = candidate
        if n / candidate <= 16:
            break
    for pc in range(-(-function.begin // step) * step, function.end + 1, step):
        out.append(f'<text x="{x(pc):.1f}" y="{base + 16}" text-anchor="middle">{pc}</text>')
    out.append(f'<text x="{LEFT - 8}" y="{base + 16}" text-anchor="end">pc</text></g>')
    return out
