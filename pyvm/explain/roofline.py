"""Measured instructions by arithmetic intensity: how near they come to what this machine has shown it can do."""

from __future__ import annotations

import math
from collections.abc import Mapping

from . import sizes
from .escaping import esc
from .model import Explanation, FunctionExplanation
from .text import time_text

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 1160, 300, 60, 16, 12, 34


def svg(explanation: Explanation, function: FunctionExplanation, dims: Mapping[str, int]) -> str:
    """A point per measured instruction: FLOP per byte to the right, GFLOP/s upwards, logarithmic; "" without any."""
    points = []
    for i in function.instructions:
        flops, moved = sizes.number(i.flops, dims), sizes.number(i.bytes_moved, dims)
        if i.self_ns and i.calls and flops and moved:
            points.append((flops / moved, flops * i.calls / i.self_ns, moved * i.calls / i.self_ns, i))
    if not points:
        return ""
    most_flops = max(rate for _, rate, _, _ in points)
    most_bytes = max(rate for _, _, rate, _ in points)
    x0, x1 = _decades([p[0] for p in points])
    y0, y1 = _decades([p[1] for p in points])

    def x(value: float) -> float:
        return _LEFT + (math.log10(value) - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (math.log10(value) - y0) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM)

    out = [
        f'<svg class="roofline" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        'aria-label="roofline: arithmetic intensity and measured rate of every instruction" '
        'xmlns="http://www.w3.org/2000/svg"><g class="grid">'
    ]
    for power in range(x0, x1 + 1):
        at = x(10.0**power)
        out.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        out.append(f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{10.0**power:g}</text>')
    for power in range(y0, y1 + 1):
        at = y(10.0**power)
        out.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    out.append(
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">FLOP per byte</text>'
        f'<text x="{_LEFT + 4}" y="{_TOP + 10}">GFLOP/s</text></g>'
    )
    # The roof: the best rates that were seen here, of arithmetic and of memory.
    corner = most_flops / most_bytes
    low = max(10.0**x0, 10.0**y0 / most_bytes)
    start = max(low, min(corner, 10.0**x1))
    path = f"M{x(low):.1f},{y(low * most_bytes):.1f}L{x(start):.1f},{y(min(start * most_bytes, most_flops)):.1f}"
    path += f"L{x(10.0**x1):.1f},{y(most_flops):.1f}"
    out.append(
        f'<g class="roof"><path d="{path}"/><text x="{_WIDTH - _RIGHT}" y="{y(most_flops) - 6:.1f}" text-anchor="end">'
        f"best here: {most_flops:.3g} GFLOP/s, {most_bytes:.3g} GB/s</text></g>"
    )
    longest = max(i.self_ns or 1 for *_, i in points)
    for intensity, rate, byte_rate, i in sorted(points, key=lambda p: -(p[3].self_ns or 0)):
        radius = 3 + 9 * math.sqrt((i.self_ns or 0) / longest)
        tip = f"{i.pc}: {i.kernel}\n{time_text(i.self_ns or 0)}, {rate:.3g} GFLOP/s, {byte_rate:.3g} GB/s"
        if i.source:
            tip += f"\n{i.source[:160]}"
        out.append(
            f'<g class="p n k-{i.category}" data-pc="{i.pc}"><circle cx="{x(intensity):.1f}" cy="{y(rate):.1f}" '
            f'r="{radius:.1f}"/><title>{esc(tip)}</title></g>'
        )
    out.append("</svg>")
    return "".join(out)


def _decades(values: list[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)
