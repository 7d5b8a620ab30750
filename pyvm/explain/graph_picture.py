"""The graph of a function as SVG."""

from __future__ import annotations

from .escaping import esc
from .graph import Block, Drawing, Edge, Node, blocks_of, draw
from .model import FunctionExplanation, Instruction, Operand
from .sizes import Size
from .text import bytes_text, count_text, time_text
from .values import shape_text

_MARGIN = 12.0


def svg(function: FunctionExplanation, key: str) -> tuple[str, int]:
    """The picture, and how many nodes it leaves out."""
    drawing = draw(function)
    names = [name for name, _ in function.params]
    types = [value for _, value in function.params]
    width, height = drawing.width + 2 * _MARGIN, drawing.height + 2 * _MARGIN
    out = [
        f'<svg class="graph" id="graph-{key}" viewBox="0 0 {width:.0f} {height:.0f}" data-w="{width:.0f}" '
        f'data-h="{height:.0f}" role="img" aria-label="graph of the function" xmlns="http://www.w3.org/2000/svg">'
        f'<g transform="translate({_MARGIN:.0f} {_MARGIN:.0f})">'
    ]
    out += [_block(block) for block in blocks_of(drawing.root) if block is not drawing.root]
    out.append('<g class="edges">')
    out += [_edge(edge) for edge in drawing.edges if not edge.stub]
    out.append("</g>")
    stubs = _stubs(drawing, names)
    for node in drawing.nodes.values():
        out.append(_node(node, names, types, stubs.get(node.id, [])))
    out.append("</g></svg>")
    return "".join(out), drawing.left_out


def _block(block: Block) -> str:
    return (
        f'<g class="block {block.kind}"><rect x="{block.x:.1f}" y="{block.y:.1f}" width="{block.width:.1f}" '
        f'height="{block.height:.1f}" rx="8"/><text x="{block.x + 10:.1f}" y="{block.y + 16:.1f}">'
        f"{esc(block.title)}</text></g>"
    )


def _edge(edge: Edge) -> str:
    points = edge.points
    path = [f"M{points[0][0]:.1f},{points[0][1]:.1f}"]
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if abs(x0 - x1) < 0.5 or y1 <= y0:
            path.append(f"L{x1:.1f},{y1:.1f}")
        else:
            middle = (y0 + y1) / 2
            path.append(f"C{x0:.1f},{middle:.1f} {x1:.1f},{middle:.1f} {x1:.1f},{y1:.1f}")
    return f'<path data-from="{edge.begin}" data-to="{edge.end}" d="{"".join(path)}"/>'


def _stubs(drawing: Drawing, names: list[str]) -> dict[int, list[str]]:
    """For nodes with inputs from far away: where those come from."""
    found: dict[int, list[str]] = {}
    for edge in drawing.edges:
        if edge.stub:
            index = -1 - edge.begin
            found.setdefault(edge.end, []).append(names[index] if edge.begin < 0 else str(edge.begin))
    return found


def _cut(text: str, width: float, per_letter: float) -> str:
    n = max(int(width / per_letter), 1)
    return esc(text if len(text) <= n else text[: n - 1] + "…")


def _node(node: Node, names: list[str], types: list[str], far: list[str]) -> str:
    x, y, w, h = node.x, node.y, node.width, node.height
    i = node.instruction
    if i is None:
        index = -1 - node.id
        name, kind = names[index], types[index]
        return (
            f'<g class="n param" data-pc="{node.id}"><rect x="{x:.1f}" y="{y:.1f}" width="{w:.0f}" height="{h:.0f}" '
            f'rx="13"/><text class="t" x="{x + w / 2:.1f}" y="{y + 17:.1f}" text-anchor="middle">'
            f"{_cut(name, w - 20, 6.6)}</text><title>{esc(f'{name}: {kind}')}</title></g>"
        )
    out = [f'<g class="n k-{i.category}" data-pc="{i.pc}">']
    out.append(f'<rect class="box" x="{x:.1f}" y="{y:.1f}" width="{w:.0f}" height="{h:.0f}" rx="6"/>')
    out.append(f'<rect class="side" x="{x:.1f}" y="{y:.1f}" width="5" height="{h:.0f}" rx="2.5"/>')
    name, detail = title(i), _detail(i)
    if h < 40:
        out.append(f'<text class="t" x="{x + 14:.1f}" y="{y + 17:.1f}">{_cut(name, w - 50, 6.6)}</text>')
    else:
        out.append(f'<text class="t" x="{x + 14:.1f}" y="{y + 19:.1f}">{_cut(name, w - 50, 7.4)}</text>')
        out.append(f'<text class="d" x="{x + 14:.1f}" y="{y + 36:.1f}">{_cut(detail, w - 24, 6.0)}</text>')
    out.append(f'<text class="pc" x="{x + w - 8:.1f}" y="{y + 17:.1f}" text-anchor="end">{i.pc}</text>')
    if far:
        shown = ", ".join(far[:3]) + (" …" if len(far) > 3 else "")
        out.append(f'<text class="far" x="{x + 14:.1f}" y="{y - 5:.1f}">↳ {_cut("from " + shown, w, 5.6)}</text>')
    out.append(f"<title>{esc(_tip(i))}</title></g>")
    return "".join(out)


def title(i: Instruction) -> str:
    """What a node is called: with the settings that matter most."""
    if i.opcode == "goto":
        return f"↺ back to {i.target}"
    if i.opcode == "if":
        return "if"
    if i.opcode == "ret":
        return "return"
    parts = ["fused" if i.kernel == "fused_elementwise" else i.kernel]
    window = next((o for o in i.operands if o.name == "w" and o.shape is not None and len(o.shape) > 2), None)
    if i.kernel == "conv_winograd":
        parts = ["winograd", "3×3"]  # its weights are those of points of the transform
    elif window is not None and window.shape is not None:
        parts.append("×".join(map(str, window.shape[2:])))
    kernel = next((o for o in i.operands if o.name == "kernel" and o.role == "setting"), None)
    if kernel is not None and kernel.text.startswith("shape("):
        parts.append(kernel.text[6:-1].replace(", ", "×"))
    strides = next((o.text for o in i.operands if o.name == "strides"), "")
    if strides.startswith("shape(") and set(strides[6:-1].replace(" ", "").split(",")) - {"1", ""}:
        parts.append("/" + strides[6:-1].split(",")[0].strip())
    if i.label:
        parts.append(i.label.strip())
    return " ".join(parts)


def _detail(i: Instruction) -> str:
    operand = _main_operand(i)
    if operand is not None:
        dtype = (operand.dtype or "?").replace("float", "f").replace("uint", "u").replace("int", "i")
        shape = "?" if operand.shape is None else "×".join("?" if d is None else str(d) for d in operand.shape)
        return f"{dtype}  {shape or 'scalar'}"
    return i.result


def _main_operand(i: Instruction) -> Operand | None:
    found = i.outputs
    return found[0] if found else None


def _tip(i: Instruction) -> str:
    lines = [f"{i.pc}: {i.callee or i.opcode}"]
    for operand in i.operands:
        if operand.role != "setting":
            arrow = "→" if operand.role == "output" else " "
            lines.append(f"{arrow} {operand.name}: {operand.dtype or '?'}{shape_text(operand.shape)}")
    costs = [_cost(i.flops, "FLOP", False), _cost(i.bytes_moved, "moved", True)]
    if i.is_work and any(costs):
        lines.append(", ".join(filter(None, costs)))
    if i.self_ns is not None:
        lines.append(f"{time_text(i.self_ns)}")
    if i.source:
        lines.append(i.source[:160])
    lines += [f"• {reason[:160]}" for reason in i.why[:4]]
    return "\n".join(lines)


def _cost(size: Size, unit: str, is_bytes: bool) -> str:
    """A cost that stays true when a dimension is changed on the page."""
    if size is None:
        return ""
    if isinstance(size, int):
        return "" if size == 0 else f"{bytes_text(size) if is_bytes else count_text(size)} {unit}"
    return f"{size}{' bytes' if is_bytes else ''} {unit}" if len(str(size)) <= 60 else ""
