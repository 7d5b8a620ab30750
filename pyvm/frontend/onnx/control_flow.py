"""Branches and loops: If, Loop and Scan, and the loop that recurrent operators are made of.

A loop is a local function that returns its own call, which runs in one frame. What a body reads from outside, the
function captures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from pyvm import op
from pyvm.frontend.onnx.node import Node
from pyvm.frontend.onnx.registry import ConverterTable
from pyvm.ir import (
    Call,
    Constant,
    Expr,
    ExternFunc,
    If,
    NoneImm,
    Prim,
    PrimValue,
    SeqExpr,
    ShapeExpr,
    ShapeStructInfo,
    SymVar,
    TensorStructInfo,
    Tuple,
    TupleGetItem,
    TupleStructInfo,
    Var,
    free_vars,
)
from vmcore.errors import CompileError

BRANCHES = ("then_branch", "else_branch")

# One iteration: from the number of the iteration and the carried values to whether to go on (None: yes), the new values
# and one element of each stacked result.
Step = Callable[[Expr, Sequence[Expr]], tuple[Expr | None, list[Expr], list[Expr]]]


class RanksDiffer(Exception):
    """The branches of an If give tensors of different ranks: what follows must be imported once for each."""


def _if(node: Node) -> list[Expr]:
    cond = node.constant(0)
    if cond is not None:
        node.splice("then_branch" if cond.reshape(-1)[0] else "else_branch")
        return []
    return emit_branches(node, [partial(node.graph, name) for name in BRANCHES], ranks_may_differ=False)


def emit_branches(node: Node, makers: Sequence[Callable[[], list[Expr]]], ranks_may_differ: bool) -> list[Expr]:
    """Emits an If on input 0 of `node`; each of `makers` emits a branch and returns its results.

    A branch that cannot be imported, as the other one is meant for the shapes that the model has, is refused when it is
    taken.
    """
    condition = node.reshape(node.tensor(0), ())
    builder = node.builder
    n_symbols, depth = node.n_fresh_dims, node.builder.scope_depth
    branches: list[SeqExpr] = []
    results: list[list[Expr]] = []
    failures: list[CompileError] = []
    for make in makers:
        builder.open_scope()
        try:
            values = make()
            results.append(values)
        except CompileError as error:
            builder.drop_scopes(depth)
            failures.append(error)
            builder.open_scope()
            check = f"this branch of {node.source} cannot be taken with these shapes: {error}"
            builder.match_cast(ShapeExpr((0,)), ShapeStructInfo((1,)), check)
            values = [PrimValue(0)] * node.n_outputs if not results else [PrimValue(0)] * len(results[0])
        branches.append(builder.close_scope(values[0] if len(values) == 1 else Tuple(values)))
    if not results:
        raise failures[0]
    if len(results[0]) != len(results[-1]):
        raise node.error(f"the branches have {len(results[0])} and {len(results[-1])} results")
    pairs = [(_info(node, ours), _info(node, theirs)) for ours, theirs in zip(results[0], results[-1], strict=True)]
    for a, b in pairs:
        if a.dtype != b.dtype:
            raise node.error(f"the results of the branches are {a} and {b}")
        if a.ndim >= 0 and b.ndim >= 0 and a.ndim != b.ndim and not ranks_may_differ:
            raise RanksDiffer
    inner = node.symbols_since(n_symbols)
    merged = [_common(a, b, inner) for a, b in pairs]
    info = merged[0] if len(merged) == 1 else TupleStructInfo(merged)
    value = node.emit(If(condition, branches[0], branches[1], info))
    fields = [value] if len(merged) == 1 else [node.emit(TupleGetItem(value, i)) for i in range(len(merged))]
    outputs = []
    for field, (a, b), ours, theirs in zip(fields, pairs, results[0], results[-1], strict=True):
        if a.shape is not None and b.shape is not None and len(a.shape) == len(b.shape):
            dims = [p if p == q and not _mentions(p, inner) else None for p, q in zip(a.shape, b.shape, strict=True)]
            field = _with_dims(node, field, dims)
        node.share_memory(field, (ours, theirs))
        outputs.append(field)
    return outputs


def _common(a: TensorStructInfo, b: TensorStructInfo, inner: frozenset[SymVar]) -> TensorStructInfo:
    """What is known of both, outside the branches."""
    if a.shape is not None and a.shape == b.shape and not any(_mentions(dim, inner) for dim in a.shape):
        return a
    return TensorStructInfo(None, a.dtype, a.ndim if a.ndim == b.ndim else -1)


def _info(node: Node, x: Expr) -> TensorStructInfo:
    info = x.struct_info
    if not isinstance(info, TensorStructInfo):
        raise node.error(f"a result of a branch or loop is not a tensor but {info}")
    return info


def _mentions(dim: Prim, symbols: frozenset[SymVar]) -> bool:
    return not isinstance(dim, int) and not free_vars(dim).isdisjoint(symbols)


def _with_dims(node: Node, x: Expr, dims: Sequence[Prim | None]) -> Expr:
    """`x` with these dimensions, checked at run time; None becomes a symbol."""
    info = _info(node, x)
    if info.shape is not None and None not in dims and info.shape == tuple(dims):
        return x
    return node.match_cast(x, [node.fresh_dim() if dim is None else dim for dim in dims])


# --- loops


@dataclass(frozen=True)
class _Types:
    """What a loop carries: the struct info of each value, and the shape and dtype of each element of a stack."""

    carried: list[TensorStructInfo]
    elements: list[TensorStructInfo]
    inner: frozenset[SymVar]  # symbols that mean nothing outside the loop


def run_loop(
    node: Node,
    step: Step,
    carried: Sequence[Expr],
    limit: Expr | None,
    cond: Expr | None = None,
    prepend: Sequence[bool] = (),
) -> tuple[list[Expr], list[Expr]]:
    """Emits a loop.

    Parameters
    ----------
    node : Node
    step : callable
        Emits one iteration; called more than once, to find what shapes the carried values keep.
    carried : sequence of Expr
        The values before the first iteration.
    limit : Expr, optional
        How many iterations at most, an int64 scalar.
    cond : Expr, optional
        Whether to begin at all, a bool scalar.
    prepend : sequence of bool
        Per stacked result, whether a new element goes before the others.

    Returns
    -------
    The carried values after the last iteration; the stacked results.
    """
    types = _find_types(node, step, carried)
    builder = node.builder
    n_carried = len(carried)
    one = Constant(np.array(1, np.int64))
    fronts = list(prepend) or [False] * len(types.elements)
    room = node.fresh_dim("k")  # rows that a stack has memory for; the first i of them are set
    stacked = [TensorStructInfo((room, *_dims(info)), info.dtype) for info in types.elements]
    certain = PrimValue(int(limit is not None and cond is None))
    params = [Var("i", TensorStructInfo((), "int64")), Var("go", TensorStructInfo((), "bool"))]
    params += [Var(f"v{i}", info) for i, info in enumerate((*types.carried, *stacked))]
    ret = [_outside(info, types.inner) for info in types.carried]
    ret += [TensorStructInfo(None, info.dtype, info.ndim) for info in stacked]

    def body(itself: Var, i: Var, go: Var, *values: Var) -> Expr:
        def again() -> Expr:
            proceed, state, elements = step(i, values[:n_carried])
            state = [node.agreeing(x, _dims(info)) for x, info in zip(state, types.carried, strict=True)]
            stacks = []
            never_stops = certain if proceed is None else PrimValue(0)
            for old, element, info in zip(values[n_carried:], elements, types.elements, strict=True):
                row = node.agreeing(element, _dims(info))
                args = (old, i, row, NoneImm() if limit is None else limit, never_stops)
                stacks.append(node.emit(_stack_call("stack_push", args, info)))
            following = node.emit(op.add(i, one))
            return node.emit(Call(itself, [following, _go_on(node, proceed, following, limit), *state, *stacks]))

        def done() -> Expr:
            rows = [
                node.emit(_stack_call("stack_rows", (stack, i, PrimValue(int(front))), info))
                for stack, front, info in zip(values[n_carried:], fronts, types.elements, strict=True)
            ]
            return Tuple([*values[:n_carried], *rows])

        return builder.emit_if(go, again, done)

    loop = builder.emit_function("loop", params, body, ret=TupleStructInfo(ret))
    start = Constant(np.array(0, np.int64))
    empty = [_empty(node, info, types.inner) for info in types.elements]
    result = node.emit(Call(loop, [start, _go_on(node, cond, start, limit), *carried, *empty]))
    outputs: list[Expr] = []
    for index, info in enumerate((*types.carried, *stacked)):
        dims = [None if dim == room or _mentions(dim, types.inner) else dim for dim in _dims(info)]
        outputs.append(_with_dims(node, node.emit(TupleGetItem(result, index)), dims))
    for output, first in zip(outputs, carried, strict=False):
        node.share_memory(output, (first,))
    return outputs[:n_carried], outputs[n_carried:]


def _stack_call(name: str, args: tuple[Expr, ...], element: TensorStructInfo) -> Call:
    """A call of a builtin that returns a stack of elements.

    A stack is pushed onto in place, each time the result of the push before it: memory and time grow with the number
    of elements, not with its square. The first stack has no rows, so that nothing of somebody else is written.
    """
    info = TensorStructInfo(None, element.dtype, len(_dims(element)) + 1)
    return Call(ExternFunc(f"pyvm.builtin.{name}"), args, {"borrows": True}, info)


def _dims(info: TensorStructInfo) -> tuple[Prim, ...]:
    assert info.shape is not None
    return info.shape


def _outside(info: TensorStructInfo, inner: frozenset[SymVar]) -> TensorStructInfo:
    """What is known about a result of the loop where the loop is called."""
    if any(_mentions(dim, inner) for dim in _dims(info)):
        return TensorStructInfo(None, info.dtype, info.ndim)
    return info


def _go_on(node: Node, cond: Expr | None, i: Expr, limit: Expr | None) -> Expr:
    """Whether there is an iteration `i`."""
    below = None if limit is None else node.emit(op.less(i, limit))
    if cond is None or below is None:
        known = cond if below is None else below
        return Constant(np.array(True)) if known is None else known
    return node.emit(op.logical_and(cond, below))


def _empty(node: Node, info: TensorStructInfo, inner: frozenset[SymVar]) -> Expr:
    """A stack of no elements."""
    dims = _dims(info)
    if any(_mentions(dim, inner) for dim in dims):
        raise node.error(f"the shape {info} of a stacked result is known only inside the loop")
    return node.emit(op.fill((0, *dims), 0, info.dtype))


def _find_types(node: Node, step: Step, carried: Sequence[Expr]) -> _Types:
    """The most precise types that an iteration keeps: dimensions that change become symbols."""
    n_symbols = node.n_fresh_dims
    infos = [_info(node, x) for x in carried]
    own: set[Prim] = set()
    while True:
        if any(info.shape is None for info in infos):
            raise node.error(f"a loop carries a tensor of unknown rank: {', '.join(map(str, infos))}")
        node.builder.open_scope()  # a trial: what it emits is dropped
        values = [Var(f"v{i}", info) for i, info in enumerate(infos)]
        _, state, elements = step(Var("i", TensorStructInfo((), "int64")), values)
        node.builder.close_scope(0)
        after = [_info(node, x) for x in state]
        merged = [_merge(node, before, new, own) for before, new in zip(infos, after, strict=True)]
        if merged == infos:
            element_infos = [_info(node, x) for x in elements]
            if any(info.shape is None for info in element_infos):
                raise node.error("a loop stacks a tensor of unknown rank")
            # Symbols of the trial mean nothing; the parameters' own exist inside the loop only.
            return _Types(infos, element_infos, node.symbols_since(n_symbols))
        infos = merged


def _merge(node: Node, before: TensorStructInfo, after: TensorStructInfo, own: set[Prim]) -> TensorStructInfo:
    if before.dtype != after.dtype or after.shape is None or len(_dims(before)) != len(after.shape):
        raise node.error(f"a loop carries a tensor that is {before} before an iteration and {after} after it")
    dims: list[Prim] = []
    for old, new in zip(_dims(before), after.shape, strict=True):
        if old not in own and old != new:
            old = node.fresh_dim()
            own.add(old)
        dims.append(old)
    return TensorStructInfo(dims, before.dtype)


def _scalar(node: Node, x: Expr, dtype: str) -> Expr:
    return node.reshape(node.cast(x, dtype), ())


def _loop(node: Node) -> list[Expr]:
    carried = [node.tensor(i) for i in range(2, node.n_inputs)]
    limit = _scalar(node, node.tensor(0), "int64") if node.has(0) else None
    cond = _scalar(node, node.tensor(1), "bool") if node.has(1) else None
    if isinstance(cond, Constant) and cond.data.all():
        cond = None

    def step(i: Expr, values: Sequence[Expr]) -> tuple[Expr | None, list[Expr], list[Expr]]:
        proceed, *results = node.graph("body", [i, Constant(np.array(True)), *values], declared=True)
        known = isinstance(proceed, Constant) and bool(proceed.data.reshape(-1)[0])
        return None if known else _scalar(node, proceed, "bool"), results[: len(carried)], results[len(carried) :]

    finals, stacks = run_loop(node, step, carried, limit, cond)
    return [*finals, *stacks]


def _scan(node: Node) -> list[Expr]:
    n_scanned = node.attr("num_scan_inputs")
    inputs = node.tensors()
    if not 0 < n_scanned <= len(inputs):
        raise node.error(f"num_scan_inputs is {n_scanned}, but there are {len(inputs)} inputs")
    carried, scanned = inputs[: len(inputs) - n_scanned], inputs[len(inputs) - n_scanned :]
    axes = [node.axis(axis, node.ndim(x)) for axis, x in zip(node.attr("scan_input_axes", [0] * n_scanned), scanned)]  # noqa: B905
    backwards = node.attr("scan_input_directions", [0] * n_scanned)
    length = node.shape(scanned[0])[axes[0]]
    limit = length_tensor(node, length)
    last = node.emit(op.sub(limit, Constant(np.array(1, np.int64)))) if any(backwards) else limit

    def step(i: Expr, values: Sequence[Expr]) -> tuple[Expr | None, list[Expr], list[Expr]]:
        mirrored = node.emit(op.sub(last, i)) if any(backwards) else i
        slices = [
            node.emit(op.gather(x, mirrored if backward else i, axis))
            for x, axis, backward in zip(scanned, axes, backwards, strict=True)
        ]
        results = node.graph("body", [*values, *slices], declared=True)
        return None, results[: len(carried)], results[len(carried) :]

    n_stacks = node.n_outputs - len(carried)
    prepend = [bool(direction) for direction in node.attr("scan_output_directions", [0] * n_stacks)]
    finals, stacks = run_loop(node, step, carried, limit, prepend=prepend)
    moved = []
    for stack, axis in zip(stacks, node.attr("scan_output_axes", [0] * n_stacks), strict=True):
        ndim = node.ndim(stack)
        order = list(range(1, ndim))
        order.insert(node.axis(axis, ndim), 0)
        moved.append(stack if order == list(range(ndim)) else node.emit(op.transpose(stack, order)))
    return [*finals, *moved]


def length_tensor(node: Node, length: Prim) -> Expr:
    """A dimension as an int64 scalar."""
    if isinstance(length, int):
        return Constant(np.array(length, np.int64))
    return node.reshape(node.emit(op.shape_to_tensor(ShapeExpr((length,)))), ())


def _scan_of_batches(node: Node) -> list[Expr]:
    raise node.error("Scan of opset 8, which has a batch dimension and lengths of sequences, is not supported")


CONVERTERS: ConverterTable = {
    "If": {1: _if},
    "Loop": {1: _loop},
    "Scan": {8: _scan_of_batches, 9: _scan},
}
