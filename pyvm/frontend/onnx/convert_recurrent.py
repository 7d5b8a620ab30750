"""Recurrent layers: LSTM, GRU and RNN, as a loop over the steps of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pyvm import op
from pyvm.frontend.onnx.control_flow import length_tensor, run_loop
from pyvm.frontend.onnx.node import Node
from pyvm.frontend.onnx.registry import ConverterTable
from pyvm.ir import Constant, Expr, Prim

_ACTIVATIONS: dict[str, Callable[[Expr], Expr]] = {
    "relu": op.relu,
    "sigmoid": op.sigmoid,
    "softplus": op.softplus,
    "softsign": op.softsign,
    "tanh": op.tanh,
}
_MAX_UNROLLED = 4


@dataclass(frozen=True)
class _Layer:
    """One direction of a layer.

    Attributes
    ----------
    inputs : Expr
        (time, batch, gates * hidden): the part of the gates that depends on the input, biases included.
    weights : Expr
        (hidden, gates * hidden): what the previous output is multiplied with.
    bias : Expr or None
        (gates * hidden,): of that product, where it must be kept apart.
    """

    node: Node
    inputs: Expr
    weights: Expr
    bias: Expr | None
    hidden: int
    activations: list[Callable[[Expr], Expr]]
    peepholes: Expr | None

    def gate(self, x: Expr, index: int) -> Expr:
        """Columns of gate `index`."""
        begin = index * self.hidden
        return self.node.emit(op.strided_slice(x, (begin,), (begin + self.hidden,), axes=(self.node.ndim(x) - 1,)))

    def activate(self, index: int, x: Expr) -> Expr:
        clip = self.node.attr("clip", None)
        if clip is not None:
            x = self.node.emit(op.clip(x, -float(clip), float(clip)))
        return self.node.emit(self.activations[index](x))


# The new state (output first) from the input part of the gates at one step and the old state.
_Cell = Callable[[_Layer, Expr, Sequence[Expr]], list[Expr]]


def _lstm_cell(layer: _Layer, x: Expr, state: Sequence[Expr]) -> list[Expr]:
    node, (h, c) = layer.node, state
    gates = node.emit(op.add(x, node.emit(op.matmul(h, layer.weights))))
    i, o, f, g = (layer.gate(gates, k) for k in range(4))
    holes = layer.peepholes
    if holes is not None:
        i = node.emit(op.add(i, op.mul(layer.gate(holes, 0), c)))
        f = node.emit(op.add(f, op.mul(layer.gate(holes, 2), c)))
    kept = op.mul(layer.activate(0, f), c)
    cell = node.emit(op.add(kept, op.mul(layer.activate(0, i), layer.activate(1, g))))
    if holes is not None:
        o = node.emit(op.add(o, op.mul(layer.gate(holes, 1), cell)))
    shown = node.emit(layer.activations[2](cell))
    return [node.emit(op.mul(layer.activate(0, o), shown)), cell]


def _gru_cell(layer: _Layer, x: Expr, state: Sequence[Expr]) -> list[Expr]:
    node, h = layer.node, state[0]
    inner = node.emit(op.matmul(h, layer.weights))
    z = layer.activate(0, node.emit(op.add(layer.gate(x, 0), layer.gate(inner, 0))))
    r = layer.activate(0, node.emit(op.add(layer.gate(x, 1), layer.gate(inner, 1))))
    assert layer.bias is not None
    bias = layer.gate(layer.bias, 2)
    if node.attr("linear_before_reset", 0):
        reset = op.mul(r, op.add(layer.gate(inner, 2), bias))
    else:
        reset = op.add(op.matmul(node.emit(op.mul(r, h)), layer.gate(layer.weights, 2)), bias)
    candidate = layer.activate(1, node.emit(op.add(layer.gate(x, 2), reset)))
    one = node.scalar_like(1, h)
    return [node.emit(op.add(op.mul(op.sub(one, z), candidate), op.mul(z, h)))]


def _rnn_cell(layer: _Layer, x: Expr, state: Sequence[Expr]) -> list[Expr]:
    node = layer.node
    return [layer.activate(0, node.emit(op.add(x, op.matmul(state[0], layer.weights))))]


def _recurrent(node: Node, gates: int, cell: _Cell, n_states: int, defaults: Sequence[str]) -> list[Expr | None]:
    if node.attr("input_forget", 0):
        raise node.error("input_forget is not supported")
    x = node.tensor(0)
    batch_first = bool(node.attr("layout", 0))
    if batch_first:
        x = node.emit(op.transpose(x, (1, 0, 2)))
    n_directions, _, hidden = node.static_shape(node.tensor(2))
    direction = node.attr("direction", "forward")
    if n_directions != (2 if direction == "bidirectional" else 1):
        raise node.error(f"direction {direction!r}, but the weights have {n_directions} directions")
    length, batch = node.shape(x)[:2]
    names = node.attr("activations", list(defaults) * n_directions)
    unknown = [name for name in names if name.lower() not in _ACTIVATIONS]
    if unknown or len(names) != len(defaults) * n_directions:
        raise node.error(f"activations {', '.join(names)} are not supported ({len(defaults)} per direction are needed)")
    lengths = node.cast(node.tensor(4), "int64") if node.has(4) else None
    outputs: list[Expr] = []
    finals: list[list[Expr]] = []
    for index in range(n_directions):
        backwards = direction == "reverse" or index == 1
        own = names[index * len(defaults) :][: len(defaults)]
        layer = _layer(node, x, index, gates, hidden, own, backwards, lengths)
        states = [_initial(node, 5 + k, index, (batch, hidden), x, batch_first) for k in range(n_states)]
        stack, last = _run(layer, cell, states, length, batch, lengths)
        if backwards:
            stack = _reversed(node, stack, lengths, length)
        outputs.append(node.emit(op.unsqueeze(stack, 1)))
        finals.append([node.emit(op.unsqueeze(state, 0)) for state in last])
    y = outputs[0] if n_directions == 1 else node.emit(op.concat(outputs, 1))
    states = [_joined(node, [final[k] for final in finals]) for k in range(n_states)]
    if batch_first:
        y = node.emit(op.transpose(y, (2, 0, 1, 3)))
        states = [node.emit(op.transpose(state, (1, 0, 2))) for state in states]
    return [y, *states]


def _joined(node: Node, parts: list[Expr]) -> Expr:
    return parts[0] if len(parts) == 1 else node.emit(op.concat(parts, 0))


def _part(node: Node, x: Expr, index: int) -> Expr:
    """`x[index]`."""
    return node.emit(op.gather(x, Constant(np.array(index, np.int64)), 0))


def _layer(
    node: Node,
    x: Expr,
    index: int,
    gates: int,
    hidden: int,
    names: Sequence[str],
    backwards: bool,
    lengths: Expr | None,
) -> _Layer:
    weights = node.emit(op.transpose(_part(node, node.tensor(1), index), (1, 0)))
    recurrence = node.emit(op.transpose(_part(node, node.tensor(2), index), (1, 0)))
    size = gates * hidden
    if node.has(3):
        both = _part(node, node.tensor(3), index)
        of_input = node.emit(op.strided_slice(both, (0,), (size,), axes=(0,)))
        of_state = node.emit(op.strided_slice(both, (size,), (2 * size,), axes=(0,)))
    else:
        of_input = of_state = node.emit(op.fill((size,), 0, node.dtype(x)))
    if node.op_type == "GRU":
        # The bias of the candidate gate may belong inside the product with the reset gate: it stays apart.
        shared = node.emit(op.strided_slice(of_state, (0,), (2 * hidden,), axes=(0,)))
        none = node.emit(op.fill((hidden,), 0, node.dtype(x)))
        bias = node.emit(op.add(of_input, op.concat([shared, none], 0)))
    else:
        bias = node.emit(op.add(of_input, of_state))
    if backwards:
        x = _reversed(node, x, lengths, node.shape(x)[0])
    inputs = node.emit(op.add(op.matmul(x, weights), bias))
    holes = _part(node, node.tensor(7), index) if node.op_type == "LSTM" and node.has(7) else None
    activations = [_ACTIVATIONS[name.lower()] for name in names]
    return _Layer(node, inputs, recurrence, of_state, hidden, activations, holes)


def _reversed(node: Node, x: Expr, lengths: Expr | None, length: Prim) -> Expr:
    """`x` backwards in time; with lengths, each sequence within its own."""
    if lengths is not None:
        return node.emit(op.reverse_sequence(x, lengths, batch_axis=1, time_axis=0))
    order = op.sub(length_tensor(node, length - 1), op.arange(0, length, 1, dtype="int64"))
    return node.emit(op.gather(x, node.emit(order), 0))


def _initial(node: Node, slot: int, index: int, shape: tuple[Prim, int], x: Expr, batch_first: bool) -> Expr:
    if not node.has(slot):
        return node.emit(op.fill(shape, 0, node.dtype(x)))
    state = node.tensor(slot)
    if batch_first:
        state = node.emit(op.transpose(state, (1, 0, 2)))
    return node.agreeing(_part(node, state, index), shape)


def _run(
    layer: _Layer, cell: _Cell, states: list[Expr], length: Prim, batch: Prim, lengths: Expr | None
) -> tuple[Expr, list[Expr]]:
    """All outputs, (time, batch, hidden), and the states after the last step."""
    node = layer.node

    def step(i: Expr, values: Sequence[Expr]) -> tuple[Expr | None, list[Expr], list[Expr]]:
        new = cell(layer, node.emit(op.gather(layer.inputs, i, 0)), values)
        if lengths is None:
            return None, new, [new[0]]
        # Where a sequence has ended, its state stays and its output is zero.
        inside = node.emit(op.unsqueeze(node.emit(op.less(i, lengths)), 1))
        kept = [node.emit(op.where(inside, ours, old)) for ours, old in zip(new, values, strict=True)]
        return None, kept, [node.emit(op.where(inside, new[0], node.scalar_like(0, new[0])))]

    if isinstance(length, int) and 0 < length <= _MAX_UNROLLED:
        rows: list[Expr] = []
        for i in range(length):
            _, states, (row,) = step(Constant(np.array(i, np.int64)), states)
            rows.append(node.emit(op.unsqueeze(row, 0)))
        return _joined(node, rows), states
    finals, (stack,) = run_loop(node, step, states, length_tensor(node, length))
    return node.match_cast(stack, (length, *node.shape(stack)[1:])), finals


def _lstm(node: Node) -> list[Expr | None]:
    return _recurrent(node, 4, _lstm_cell, 2, ("Sigmoid", "Tanh", "Tanh"))


def _gru(node: Node) -> list[Expr | None]:
    return _recurrent(node, 3, _gru_cell, 1, ("Sigmoid", "Tanh"))


def _rnn(node: Node) -> list[Expr | None]:
    return _recurrent(node, 1, _rnn_cell, 1, ("Tanh",))


CONVERTERS: ConverterTable = {"GRU": {1: _gru}, "LSTM": {1: _lstm}, "RNN": {1: _rnn}}
