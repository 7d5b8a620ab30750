"""The graph of a function as a drawing plan: blocks inside blocks, and in each block nodes in layers.

Branches and loops become blocks, found in the jumps of the bytecode; what is between them is laid out in layers from
top to bottom, edges that pass a layer bending around its nodes. An edge that would pass very many layers is not drawn
but named where it ends, which keeps the picture of a large model readable and its layout fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .model import FunctionExplanation, Instruction

NODE_WIDTH, NODE_HEIGHT = 184.0, 46.0
CONTROL_HEIGHT = 26.0
_GAP_X, _GAP_Y, _PADDING, _TITLE = 26.0, 34.0, 18.0, 24.0
_DUMMY_WIDTH = 10.0
_MAX_SPAN = 14  # layers that an edge may pass
_MAX_DEPTH = 40  # of blocks inside blocks
MAX_NODES = 3000
_SWEEPS = 6


@dataclass(eq=False)
class Node:
    """A box: an instruction, or a parameter (then `id` is -1 - its index)."""

    id: int
    instruction: Instruction | None
    width: float = NODE_WIDTH
    height: float = NODE_HEIGHT
    x: float = 0.0  # of the left upper corner
    y: float = 0.0


@dataclass(eq=False)
class Block:
    """A box with a title around others.

    Attributes
    ----------
    kind : str
        "function", "branch" (one side of an If), "fork" (both sides and their condition) or "loop".
    """

    kind: str
    title: str
    items: list[Node | Block] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0
    x: float = 0.0
    y: float = 0.0
    depth: int = 1  # of blocks inside


@dataclass
class Edge:
    """A line from node to node through points."""

    begin: int
    end: int
    points: list[tuple[float, float]] = field(default_factory=list)
    stub: bool = False  # too long to draw
    within: Block | None = None  # the block whose layers it bends around


@dataclass
class Drawing:
    """Where everything is. `left_out` counts nodes beyond what a picture can hold."""

    root: Block
    nodes: dict[int, Node]
    edges: list[Edge]
    width: float
    height: float
    left_out: int = 0


def blocks_of(block: Block) -> Iterator[Block]:
    """The block and all inside it, outer ones first."""
    yield block
    for item in block.items:
        if isinstance(item, Block):
            yield from blocks_of(item)


# ---- structure


def draw(function: FunctionExplanation) -> Drawing:
    """The drawing plan of a function."""
    root = Block("function", f"@{function.name}")
    nodes = {-1 - i: Node(-1 - i, None, height=CONTROL_HEIGHT) for i in range(min(len(function.params), 200))}
    used = {pc for i in function.instructions if _is_node(i) for pc in i.fed_by}
    nodes = {id: node for id, node in nodes.items() if id in used}
    root.items += nodes.values()
    shown = [i for i in function.instructions if _is_node(i)]
    limit = shown[MAX_NODES].pc if len(shown) > MAX_NODES else function.end
    root.items += _Structure(function, nodes).sequence(function.begin, limit, 0)
    edges = [
        Edge(feeder, node.id)
        for node in nodes.values()
        if node.instruction is not None
        for feeder in _feeders(function, node.instruction, nodes)
        if feeder != node.id
    ]
    _lay_out(root, edges)
    for block in blocks_of(root):  # from positions inside the parent to positions in the picture
        for item in block.items:
            item.x += block.x
            item.y += block.y
    for edge in edges:
        _connect(edge, nodes)
    return Drawing(root, nodes, edges, root.width, root.height, max(len(shown) - MAX_NODES, 0))


def _is_node(i: Instruction) -> bool:
    if not i.reached and i.opcode != "call":
        return False
    if i.opcode in ("ret", "if"):
        return True
    if i.opcode == "goto":
        return i.target is not None and i.target <= i.pc
    return i.is_work or i.opcode == "malformed" or i.kernel in ("shape_to_tensor", "tensor_scalar", "tensor_to_shape")


def _feeders(function: FunctionExplanation, i: Instruction, nodes: dict[int, Node]) -> list[int]:
    """The nodes that an instruction gets its data from; instructions that are no node pass theirs on."""
    found: dict[int, None] = {}
    seen: set[int] = set()
    waiting = list(reversed(i.fed_by))
    while waiting and len(seen) < 500:
        pc = waiting.pop()
        if pc in nodes:
            if pc < i.pc:
                found[pc] = None
        elif pc not in seen and function.begin <= pc < function.end:
            seen.add(pc)
            waiting += reversed(function.instruction(pc).fed_by)
    return list(found)


class _Structure:
    """Finds branches and loops in the jumps."""

    def __init__(self, function: FunctionExplanation, nodes: dict[int, Node]) -> None:
        self._function = function
        self._nodes = nodes

    def sequence(self, first: int, stop: int, depth: int) -> list[Node | Block]:
        """The items of the instructions first .. stop - 1."""
        items: list[Node | Block] = []
        starts: list[int] = []  # instruction at which each item begins
        pc = first
        while pc < stop:
            i = self._function.instruction(pc)
            begin = pc
            if i.opcode == "if" and i.target is not None and pc < i.target <= stop and depth < _MAX_DEPTH and i.reached:
                fork, pc = self._fork(i, stop, depth)
                items.append(fork)
                starts.append(begin)
                continue
            if _is_node(i):
                node = self._node(i)
                items.append(node)
                starts.append(begin)
                if i.opcode == "goto" and i.target is not None and first < i.target and depth < _MAX_DEPTH:
                    at = next((k for k, start in enumerate(starts) if start >= i.target), None)
                    inner = max([0, *(item.depth for item in items[at:] if isinstance(item, Block))])
                    if at is not None and inner < _MAX_DEPTH:
                        loop = Block("loop", f"loop, instructions {i.target} to {i.pc}", items[at:], depth=inner + 1)
                        del items[at:], starts[at:]
                        items.append(loop)
                        starts.append(i.target)
            pc += 1
        return items

    def _fork(self, i: Instruction, stop: int, depth: int) -> tuple[Block, int]:
        """An If with its sides, and where the program goes on after it."""
        assert i.target is not None
        middle, after = i.target, i.target
        last = self._function.instruction(middle - 1)
        then_stop = middle
        if last.opcode == "goto" and last.target is not None and middle < last.target <= stop:
            then_stop, after = middle - 1, last.target
        fork = Block("fork", f"if, at {i.pc}", [self._node(i)])
        fork.items.append(Block("branch", "then", self.sequence(i.pc + 1, then_stop, depth + 1)))
        if after > middle:
            fork.items.append(Block("branch", "else", self.sequence(middle, after, depth + 1)))
        fork.depth = 1 + max(1, *(item.depth + 1 for side in fork.items[1:] for item in [side]))  # type: ignore[union-attr]
        return fork, after

    def _node(self, i: Instruction) -> Node:
        node = self._nodes[i.pc] = Node(i.pc, i)
        if i.category == "control" or i.opcode == "malformed":
            node.height = CONTROL_HEIGHT
        return node


# ---- layout


def _lay_out(root: Block, edges: list[Edge]) -> None:
    """Sizes of all blocks, and positions of items inside their block; bends of edges inside one block."""
    path_of: dict[int, list[Block]] = {}

    def note(block: Block, path: list[Block]) -> None:
        for item in block.items:
            if isinstance(item, Block):
                note(item, [*path, block])
            else:
                path_of[item.id] = [*path, block]

    note(root, [])
    item_at: dict[tuple[Block, int], Node | Block] = {}
    for id, path in path_of.items():
        for outer, inner in zip(path, path[1:], strict=False):
            item_at[outer, id] = inner
    nodes = {item.id: item for block in blocks_of(root) for item in block.items if isinstance(item, Node)}
    links: dict[Block, list[tuple[Node | Block, Node | Block, Edge]]] = {}
    for edge in edges:
        if edge.begin not in path_of or edge.end not in path_of:
            continue
        common = root
        for a, b in zip(path_of[edge.begin], path_of[edge.end], strict=False):
            if a is not b:
                break
            common = a
        begin = item_at.get((common, edge.begin), nodes[edge.begin])
        end = item_at.get((common, edge.end), nodes[edge.end])
        if begin is not end:
            links.setdefault(common, []).append((begin, end, edge))
    for block in reversed(list(blocks_of(root))):  # inner ones first: their sizes are needed
        if block.kind == "fork":
            _lay_out_fork(block)
        else:
            _lay_out_layers(block, links.get(block, []))


def _lay_out_fork(block: Block) -> None:
    condition, *sides = block.items
    width = sum(side.width for side in sides) + _GAP_X * (len(sides) - 1)
    width = max(width, condition.width)
    condition.x = _PADDING + (width - condition.width) / 2
    condition.y = _TITLE
    x = _PADDING
    for side in sides:
        side.x, side.y = x, _TITLE + condition.height + _GAP_Y * 0.6
        x += side.width + _GAP_X
    block.width = width + 2 * _PADDING
    block.height = max(side.y + side.height for side in sides) + _PADDING


@dataclass(eq=False)
class _Place:
    """Something in a layer: an item, or the point where an edge passes."""

    item: Node | Block | None
    width: float
    layer: int = 0
    order: float = 0.0
    x: float = 0.0  # centre
    above: list[_Place] = field(default_factory=list)
    below: list[_Place] = field(default_factory=list)


def _lay_out_layers(block: Block, links: list[tuple[Node | Block, Node | Block, Edge]]) -> None:
    places = {item: _Place(item, item.width) for item in block.items}
    index = {item: i for i, item in enumerate(block.items)}
    forward = [(a, b, e) for a, b, e in links if index[a] < index[b]]
    incoming: dict[Node | Block, list[Node | Block]] = {}
    outgoing: dict[Node | Block, list[Node | Block]] = {}
    for a, b, _ in forward:
        incoming.setdefault(b, []).append(a)
        outgoing.setdefault(a, []).append(b)
    barrier = 0  # blocks and jumps keep their place in time: what follows them is below
    lowest = -1
    for item in block.items:
        place = places[item]
        place.layer = max([places[a].layer + 1 for a in incoming.get(item, ())] + [barrier])
        if isinstance(item, Block) or (isinstance(item, Node) and _is_last(item)):
            place.layer = max(place.layer, lowest + 1)
            barrier = place.layer + 1 if isinstance(item, Block) else barrier
        lowest = max(lowest, place.layer)
    for item in reversed(block.items):  # what nothing above holds goes down to who needs it
        if not incoming.get(item) and outgoing.get(item) and isinstance(item, Node):
            places[item].layer = max(places[item].layer, min(places[b].layer for b in outgoing[item]) - 1)
    layers: list[list[_Place]] = [[] for _ in range(lowest + 1)]
    for item in block.items:
        layers[places[item].layer].append(places[item])
    bends: list[tuple[Edge, list[_Place]]] = []
    drawn: dict[tuple[_Place, int], _Place] = {}  # edges from one node to several share their bends
    for a, b, edge in forward:
        start, end = places[a], places[b]
        if end.layer - start.layer > _MAX_SPAN:
            edge.stub = True
            continue
        chain = [start]
        for layer in range(start.layer + 1, end.layer):
            bend = drawn.get((start, layer))
            if bend is None:
                bend = drawn[start, layer] = _Place(None, _DUMMY_WIDTH, layer)
                layers[layer].append(bend)
                chain[-1].below.append(bend)
                bend.above.append(chain[-1])
            chain.append(bend)
        chain[-1].below.append(end)
        end.above.append(chain[-1])
        bends.append((edge, chain[1:]))
    for a, b, edge in links:
        if index[a] >= index[b]:
            edge.stub = True
    _order(layers)
    _place(layers)
    _set_positions(block, layers, bends)


def _is_last(node: Node) -> bool:
    return node.instruction is not None and node.instruction.opcode in ("ret", "goto")


def _order(layers: list[list[_Place]]) -> None:
    """Sorts every layer so that edges cross little: by the mean of the neighbours, down and up again."""
    for layer in layers:
        for i, place in enumerate(layer):
            place.order = i
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            for place in layer:
                near = place.above if down else place.below
                if near:
                    place.order = sum(other.order for other in near) / len(near)
            layer.sort(key=lambda place: place.order)
            for i, place in enumerate(layer):
                place.order = i - (len(layer) - 1) / 2  # from the middle, so that layers of other lengths compare


def _place(layers: list[list[_Place]]) -> None:
    """Gives every place an x: chains of nodes and the bends of an edge straight, near what they are linked to."""
    for layer in layers:
        _settle(layer, [place.order * (NODE_WIDTH + _GAP_X) for place in layer])
    chains = _chains(layers)
    every = [place for layer in layers for place in layer]
    for _ in range(3 * _SWEEPS):
        wants: dict[int, list[float]] = {}  # per chain: sum of wishes, their weight, sum of its own positions, members
        for place in every:
            entry = wants.setdefault(chains[place], [0.0, 0.0, 0.0, 0])
            entry[2] += place.x
            entry[3] += 1
            for other in (*place.above, *place.below):
                if chains[other] != chains[place]:
                    weight = 1.0 if place.item is None or other.item is None else 3.0
                    entry[0] += weight * other.x
                    entry[1] += weight
        goals = {}
        for chain, (wish, weight, own, members) in wants.items():
            mean = own / members
            # A weak pull to the middle keeps long graphs from drifting to one side.
            goals[chain] = (wish + 0.5 * members * mean) / (weight + 0.5 * members + 0.02) if members else mean
        for layer in layers:
            _settle(layer, [goals[chains[place]] for place in layer])


def _chains(layers: list[list[_Place]]) -> dict[_Place, int]:
    """Numbers for runs of places that belong above each other: each has one next one, and that one it."""

    def main(near: list[_Place]) -> _Place | None:
        nodes = [place for place in near if place.item is not None] or near
        return nodes[(len(nodes) - 1) // 2] if nodes else None

    numbers: dict[_Place, int] = {}
    for layer in layers:
        for place in layer:
            above = main(sorted(place.above, key=lambda other: other.order))
            follows = above is not None and main(sorted(above.below, key=lambda other: other.order)) is place
            same_kind = above is not None and (above.item is None) == (place.item is None)
            if above is not None and follows and same_kind:
                numbers[place] = numbers[above]
            else:
                numbers[place] = len(numbers)
    return numbers


def _settle(layer: list[_Place], wanted: list[float]) -> None:
    """Moves the places of a layer as near as they can be to where they want to be, in their order, without overlaps.

    Least squares: neighbours that would overlap form a group, which lies at the mean of what its members want.
    """
    shift = [0.0]
    for left, right in zip(layer, layer[1:], strict=False):
        shift.append(shift[-1] + (left.width + right.width) / 2 + _GAP_X)
    groups: list[tuple[float, int]] = []  # (sum of what the members want, members)
    for want, by in zip(wanted, shift, strict=False):
        total, n = want - by, 1
        while groups and groups[-1][0] / groups[-1][1] > total / n:
            more, m = groups.pop()
            total, n = total + more, n + m
        groups.append((total, n))
    position = 0
    for total, n in groups:
        for _ in range(n):
            layer[position].x = total / n + shift[position]
            position += 1


def _set_positions(block: Block, layers: list[list[_Place]], bends: list[tuple[Edge, list[_Place]]]) -> None:
    every = [place for layer in layers for place in layer]
    left = min((place.x - place.width / 2 for place in every), default=0.0)
    right = max((place.x + place.width / 2 for place in every), default=0.0)
    y = _TITLE
    middles = []
    for layer in layers:
        height = max((place.item.height if place.item is not None else 0.0 for place in layer), default=0.0)
        middles.append((y, y + height))
        for place in layer:
            if place.item is not None:
                place.item.x = place.x - place.width / 2 - left + _PADDING
                place.item.y = y + (height - place.item.height) / 2
        y += height + _GAP_Y
    for edge, chain in bends:
        for place in chain:
            top, bottom = middles[place.layer]
            x = place.x - left + _PADDING
            edge.points += [(x, top), (x, bottom)]
        edge.within = block
    block.width = max(right - left, 60.0) + 2 * _PADDING
    block.height = max(y - _GAP_Y, _TITLE) + _PADDING


def _connect(edge: Edge, nodes: dict[int, Node]) -> None:
    """Makes the bends of an edge positions in the picture, and adds its ends."""
    begin, end = nodes[edge.begin], nodes[edge.end]
    x, y = (edge.within.x, edge.within.y) if edge.within is not None else (0.0, 0.0)
    bends = [(px + x, py + y) for px, py in edge.points]
    start = begin.x + begin.width / 2, begin.y + begin.height
    stop = end.x + end.width / 2, end.y
    # Inside deeper blocks the line goes straight on: bends above its start or below its end are not needed.
    bends = [(px, py) for px, py in bends if start[1] <= py <= stop[1]]
    edge.points = [start, *bends, stop]
