"""A table of programs: numpy, the reference interpreter and the machine agree for all batches, compiled once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import pyvm
from pyvm import op
from pyvm.ir import (
    BlockBuilder,
    Call,
    CallableStructInfo,
    Expr,
    IRModule,
    ObjectStructInfo,
    PrimStructInfo,
    ShapeExpr,
    ShapeStructInfo,
    StructInfo,
    SymVar,
    TensorStructInfo,
    Tuple,
    TupleGetItem,
    TupleStructInfo,
    Var,
    as_expr,
    call_dps_packed,
    call_packed,
    check_well_formed,
    parse,
)
from tests.ir_text import build, tensor
from tests.native_kernels import NATIVE
from tests.pyvm.ir.test_parser import assert_round_trip, assert_round_trips_after_every_pass
from tests.reference_vm import run

N, T = SymVar("n"), SymVar("t")
BATCHES = (0, 1, 2, 7, 64)
OTHER_SYMBOLS = {"t": 5, "m": 3}
Draw = Callable[[int, np.random.Generator], list[Any]]


@dataclass
class Program:
    """One program and its oracle.

    Attributes
    ----------
    module : IRModule
    oracle : callable
        The same in numpy.
    draw : callable, optional
        Arguments for a batch; random tensors of the parameters' shapes by default.
    batches : tuple of int
        Batches it is defined for.
    functions : mapping
        Python functions that it calls.
    """

    module: IRModule
    oracle: Callable[..., Any]
    draw: Draw | None = None
    batches: tuple[int, ...] = BATCHES
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


PROGRAMS: dict[str, Program] = {}


def written(oracle: Callable[..., Any], body: Callable[..., Any], draw: Draw | None = None, **params: Any) -> None:
    """Adds a program built by `body(bb, *params)`, under the name of its oracle."""
    PROGRAMS[oracle.__name__] = Program(build(body, False, **params), oracle, draw)


def text(oracle: Callable[..., Any], program: str, draw: Draw | None = None, **more: Any) -> None:
    """Adds a program in text form, under the name of its oracle."""
    PROGRAMS[oracle.__name__] = Program(parse(program), oracle, draw, **more)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def softmax(x: np.ndarray) -> np.ndarray:
    if not x.size:
        return x
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# --- tensors and symbolic shapes


def dynamic_mlp(x, w1, b1, w2):
    return relu(x @ w1 + b1) @ w2


written(
    dynamic_mlp,
    lambda bb, x, w1, b1, w2: bb.emit(op.matmul(op.relu(op.add(op.matmul(x, w1), b1)), w2)),
    x=tensor(N, 4),
    w1=tensor(4, 8),
    b1=tensor(8),
    w2=tensor(8, 3),
)


def masked_attention(q, k, v, mask):
    scores = np.where(mask[:, None, :], q @ k.transpose(0, 2, 1) / 2, np.float32(-1e9))
    return softmax(scores) @ v


def _attention(bb: BlockBuilder, q: Var, k: Var, v: Var, mask: Var) -> Expr:
    scores = op.div(op.matmul(q, op.transpose(k, (0, 2, 1))), np.float32(2))
    scores = bb.emit(op.where(bb.emit(op.unsqueeze(mask, 1)), bb.emit(scores), np.float32(-1e9)))
    return bb.emit(op.matmul(op.softmax(scores), v))


written(
    masked_attention,
    _attention,
    q=tensor(N, T, 4),
    k=tensor(N, T, 4),
    v=tensor(N, T, 4),
    mask=tensor(N, T, dtype="bool"),
)


def reshape_polymorphic(x):
    return x.reshape(-1), x.reshape(6, x.shape[0])


written(
    reshape_polymorphic,
    lambda bb, x: bb.emit(Tuple([bb.emit(op.reshape(op.relu(x), (N * 6,))), bb.emit(op.reshape(op.relu(x), (6, N)))])),
    x=tensor(N, 6),
    draw=lambda n, rng: [rng.uniform(size=(n, 6)).astype(np.float32)],
)


def concat_with_itself(x, y):
    return np.concatenate([x, y, x[:, :1]], 1)


written(
    concat_with_itself,
    lambda bb, x, y: bb.emit(op.concat([x, y, bb.emit(op.strided_slice(x, (0,), (1,), axes=(1,)))], 1)),
    x=tensor(N, 3),
    y=tensor(N, T),
)


def batches_joined(x, y):
    return np.concatenate([x, y], 0) * 2


written(
    batches_joined,
    lambda bb, x, y: bb.emit(op.mul(op.concat([x, y], 0), np.float32(2))),
    x=tensor(N, 3),
    y=tensor(T, 3),
)


def every_other_row(x):
    return x[::2]


written(every_other_row, lambda bb, x: bb.emit(op.strided_slice(x, (0,), (N,), steps=(2,), axes=(0,))), x=tensor(N, 3))


def split_and_swap(x):
    return np.concatenate([x[:, 4:], x[:, :4]], 1)


written(split_and_swap, lambda bb, x: bb.emit(op.concat(list(reversed(op.split(x, [4, 2], 1))), 1)), x=tensor(N, 6))


def layer_norm(x, scale, bias):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * scale + bias


written(layer_norm, lambda bb, x, s, b: bb.emit(op.layer_norm(x, s, b)), x=tensor(N, 8), s=tensor(8), b=tensor(8))


def broadcast_outer(x, y):
    return x[:, None] * y[None, :] + x.shape[0]


def _outer(bb: BlockBuilder, x: Var, y: Var) -> Expr:
    size = bb.emit(op.cast(op.reshape(op.shape_to_tensor(ShapeExpr((N,))), ()), "float32"))
    return bb.emit(op.add(op.mul(op.unsqueeze(x, 1), op.unsqueeze(y, 0)), size))


written(broadcast_outer, _outer, x=tensor(N), y=tensor(T))


def one_hot_loss(x, labels):
    return -(np.eye(5, dtype=np.float32)[labels] * np.log(softmax(x))).sum(-1)


written(
    one_hot_loss,
    lambda bb, x, labels: bb.emit(
        op.neg(
            op.reduce_sum(op.mul(op.one_hot(labels, 5, np.float32(0), np.float32(1)), op.log(op.softmax(x))), axes=(1,))
        )
    ),
    x=tensor(N, 5),
    labels=tensor(N, dtype="int64"),
)


def causal_mask(x):
    return np.where(np.tril(np.ones((x.shape[1],) * 2, bool)), x[:, None, :], 0).astype(np.float32)


def _causal(bb: BlockBuilder, x: Var) -> Expr:
    ones = bb.emit(op.fill((T, T), np.float32(1)))
    return bb.emit(op.mul(op.trilu(ones, upper=False), op.unsqueeze(x, 1)))


written(causal_mask, _causal, x=tensor(N, T))


def running_mean(x):
    return np.cumsum(x, 1) / np.arange(1, x.shape[1] + 1, dtype=np.float32)


written(
    running_mean,
    lambda bb, x: bb.emit(op.div(op.cumsum(x, 1), op.cast(op.arange(1, T + 1, 1, dtype="int64"), "float32"))),
    x=tensor(N, T),
)


def embedding(table, ids):
    return table[ids].sum(1)


written(
    embedding,
    lambda bb, table, ids: bb.emit(op.reduce_sum(op.gather(table, ids, 0), axes=(1,))),
    table=tensor(7, 4),
    ids=tensor(N, T, dtype="int64"),
)


def small_cnn(x, w):
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return relu(np.einsum("nchwij,ocij->nohw", windows, w)).mean((2, 3))


written(
    small_cnn,
    lambda bb, x, w: bb.emit(op.reduce_mean(op.relu(op.conv(x, w, pads=(1, 1, 1, 1))), axes=(2, 3))),
    x=tensor(N, 2, 5, 5),
    w=tensor(3, 2, 3, 3),
)


def integer_arithmetic(a, b):
    return (a * 3 + b) % 5 - b // 2


written(
    integer_arithmetic,
    lambda bb, a, b: bb.emit(
        op.sub(op.mod(op.add(op.mul(a, np.int64(3)), b), np.int64(5)), op.floor_div(b, np.int64(2)))
    ),
    a=tensor(N, dtype="int64"),
    b=tensor(N, dtype="int64"),
)


def normalized_rows(x):
    return x / np.sqrt((x * x).sum(1, keepdims=True) + 1)


written(
    normalized_rows,
    lambda bb, x: bb.emit(
        op.div(x, op.sqrt(op.add(op.reduce_sum(op.mul(x, x), axes=(1,), keepdims=True), np.float32(1))))
    ),
    x=tensor(N, 4),
)


def padded_to_even(x):
    return np.pad(x, ((0, x.shape[0] % 2), (0, 0)))


written(padded_to_even, lambda bb, x: bb.emit(op.pad(x, (0, 0, N % 2, 0))), x=tensor(N, 3))


def best_two(x):
    order = np.argsort(-x, 1, kind="stable")[:, :2]
    return np.take_along_axis(x, order, 1), order


written(best_two, lambda bb, x: bb.emit(op.topk(x, 2, 1)), x=tensor(N, 5))


# --- sizes that depend on data


def positive_values(x):
    return x[x > 0]


def _positive(bb: BlockBuilder, x: Var) -> Expr:
    mask = bb.emit(op.greater(x, np.float32(0)))
    count = SymVar("found")
    bb.match_cast(bb.emit(op.nonzero_count(mask)), PrimStructInfo("int64", count))
    rows = bb.emit(op.reshape(op.nonzero(mask, count), (count,)))
    return bb.emit(op.gather(x, rows, 0))


written(positive_values, _positive, x=tensor(N))


def reshaped_by_argument(x, s):
    return x.reshape(tuple(s))


written(
    reshaped_by_argument,
    lambda bb, x, s: bb.emit(op.reshape(op.neg(op.neg(x)), s)),
    x=tensor(N, 6),
    s=ShapeStructInfo((SymVar("a"), SymVar("b"))),
    draw=lambda n, rng: [rng.uniform(size=(n, 6)).astype(np.float32), pyvm.Shape((2 * n, 3))],
)


def repeated(x, times):
    return np.tile(x, (times, 1))


written(
    repeated,
    lambda bb, x, times: bb.emit(op.tile(x, (SymVar("k"), 1))),
    x=tensor(N, 2),
    times=PrimStructInfo("int64", SymVar("k")),
    draw=lambda n, rng: [rng.uniform(size=(n, 2)).astype(np.float32), n % 4],
)


def first_rows(x, count):
    return x[: int(count)]


def _first_rows(bb: BlockBuilder, x: Var, count: Var) -> Expr:
    symbol = SymVar("c")
    bb.match_cast(bb.emit(op.tensor_scalar(count)), PrimStructInfo("int64", symbol))
    return bb.emit(op.strided_slice(x, (0,), (symbol,), axes=(0,)))


written(
    first_rows,
    _first_rows,
    x=tensor(N, 2),
    count=tensor(dtype="int64"),
    draw=lambda n, rng: [rng.uniform(size=(n, 2)).astype(np.float32), np.array(n // 2)],
)


# --- branches


def early_exit(x, w):
    if np.abs(x).sum() < 4:
        return x
    y = relu(x @ w)
    return y if y.sum() > 10 else y - 1


def _early_exit(bb: BlockBuilder, x: Var, w: Var) -> Expr:
    def long_way() -> Expr:
        y = bb.emit(op.relu(op.matmul(x, w)))
        enough = bb.emit(op.greater(op.reduce_sum(y), np.float32(10)))
        return bb.emit_if(enough, lambda: y, lambda: bb.emit(op.sub(y, np.float32(1))))

    small = bb.emit(op.less(op.reduce_sum(op.abs(x)), np.float32(4)))
    return bb.emit_if(small, lambda: x, long_way)


written(early_exit, _early_exit, x=tensor(N, 4), w=tensor(4, 4))


def branch_on_flag(x, flag):
    return -x if flag else np.exp(x)


written(
    branch_on_flag,
    lambda bb, x, flag: bb.emit_if(flag, lambda: bb.emit(op.neg(x)), lambda: bb.emit(op.exp(x))),
    x=tensor(N, 2),
    flag=PrimStructInfo("bool"),
    draw=lambda n, rng: [rng.uniform(size=(n, 2)).astype(np.float32), n % 2 == 0],
)


def branch_with_tuples(x, c):
    a, b = (x, x + 1) if c else (x * 2, x)
    return a - b, b


def _branch_with_tuples(bb: BlockBuilder, x: Var, c: Var) -> Expr:
    pair = bb.emit_if(
        c, lambda: Tuple([x, bb.emit(op.add(x, np.float32(1)))]), lambda: Tuple([bb.emit(op.mul(x, np.float32(2))), x])
    )
    a, b = (bb.emit(TupleGetItem(pair, i)) for i in range(2))
    return bb.emit(Tuple([bb.emit(op.sub(a, b)), b]))


written(branch_with_tuples, _branch_with_tuples, x=tensor(N, 2), c=tensor(dtype="bool"))


def branches_of_different_size(x, c):
    return np.concatenate([x, x]) if c else x


written(
    branches_of_different_size,
    lambda bb, x, c: bb.emit_if(c, lambda: bb.emit(op.concat([x, x], 0)), lambda: x),
    x=tensor(N, 2),
    c=tensor(dtype="bool"),
)


# --- loops and recursion

FLOAT0, INT0, BOOL0 = "Tensor((), float32)", "Tensor((), int64)", "Tensor((), bool)"


def rnn(x, h, w, u):
    for step in range(x.shape[1]):
        h = np.tanh(x[:, step] @ w + h @ u)
    return h


def _rnn(bb: BlockBuilder, x: Var, h: Var, w: Var, u: Var) -> Expr:
    steps = bb.emit(op.reshape(op.shape_to_tensor(ShapeExpr((T,))), ()))

    def body(itself: Var, i: Var, state: Var) -> Expr:
        def step() -> Expr:
            new = op.tanh(op.add(op.matmul(op.gather(x, i, 1), w), op.matmul(state, u)))
            return bb.emit(Call(itself, [bb.emit(op.add(i, np.int64(1))), bb.emit(new)]))

        return bb.emit_if(op.less(i, steps), step, lambda: state)

    params = [Var("i", tensor(dtype="int64")), Var("state", tensor(N, 3))]
    loop = bb.emit_function("loop", params, body, ret=tensor(N, 3))
    return bb.emit(Call(loop, [bb.emit(op.sub(steps, steps)), h]))


written(rnn, _rnn, x=tensor(N, T, 4), h=tensor(N, 3), w=tensor(4, 3), u=tensor(3, 3))


def newton_square_root(x):
    y = np.maximum(x, np.float32(1))
    while y.size and np.abs(y * y - x).max() > 1e-3:
        y = (y + x / y) / 2
    return y


text(
    newton_square_root,
    """
def improve(x: Tensor((n,), float32), y: Tensor((n,), float32)) -> Tensor((n,), float32):
    off = reduce_any(greater(abs(sub(mul(y, y), x)), const(0.001, float32)), axes=(0,), keepdims=False)
    if off:
        r = @improve(x, div(add(y, div(x, y)), const(2.0, float32)))
    else:
        r = y
    return r

def main(x: Tensor((n,), float32)) -> Tensor((n,), float32):
    return @improve(x, maximum(x, const(1.0, float32)))
""",
    lambda n, rng: [rng.uniform(0.1, 9, n).astype(np.float32)],
)


def fib(n):
    a, b = 0, 1
    for _ in range(int(n)):
        a, b = b, a + b
    return np.array(a)


def small_numbers(n: int, rng: np.random.Generator) -> list[Any]:
    return [np.array(min(n, 12))]


text(
    fib,
    f"""
def main(n: {INT0}) -> {INT0}:
    small = less(n, const(2, int64))
    if small:
        r = n
    else:
        r = add(@main(sub(n, const(1, int64))), @main(sub(n, const(2, int64))))
    return r
""",
    small_numbers,
)


def factorial(n):
    return np.array(float(math.factorial(int(n))), np.float32)


text(
    factorial,
    f"""
def main(n: {INT0}) -> {FLOAT0}:
    small = less(n, const(2, int64))
    if small:
        r: {FLOAT0} = const(1.0, float32)
    else:
        r = mul(cast(n, dtype="float32"), @main(sub(n, const(1, int64))))
    return r
""",
    small_numbers,
)


def is_even(n):
    return np.array(int(n) % 2 == 0)


text(
    is_even,
    f"""
def main(n: {INT0}) -> {BOOL0}:
    if equal(n, const(0, int64)):
        r: {BOOL0} = const(True, bool)
    else:
        r = @odd(sub(n, const(1, int64)))
    return r

def odd(n: {INT0}) -> {BOOL0}:
    if equal(n, const(0, int64)):
        r: {BOOL0} = const(False, bool)
    else:
        r = @main(sub(n, const(1, int64)))
    return r
""",
    lambda n, rng: [np.array(n)],
)


def greatest_common_divisor(a, b):
    return np.gcd(a, b)


text(
    greatest_common_divisor,
    f"""
def main(a: {INT0}, b: {INT0}) -> {INT0}:
    if equal(b, const(0, int64)):
        r: {INT0} = a
    else:
        r = @main(b, mod(a, b))
    return r
""",
    lambda n, rng: [np.array(n), np.array(36)],
)


def collatz_steps(n):
    n, steps = int(n) + 1, 0
    while n != 1:
        n, steps = (n // 2 if n % 2 == 0 else 3 * n + 1), steps + 1
    return np.array(steps)


text(
    collatz_steps,
    f"""
def go(n: {INT0}, steps: {INT0}) -> {INT0}:
    if equal(n, const(1, int64)):
        r: {INT0} = steps
    else:
        more = add(steps, const(1, int64))
        if equal(mod(n, const(2, int64)), const(0, int64)):
            r1 = @go(floor_div(n, const(2, int64)), more)
        else:
            r1 = @go(add(mul(n, const(3, int64)), const(1, int64)), more)
        r = r1
    return r

def main(n: {INT0}) -> {INT0}:
    return @go(add(n, const(1, int64)), const(0, int64))
""",
    lambda n, rng: [np.array(n)],
)


def tree_sum(tree):
    return tree[0] if len(tree) == 1 else tree_sum(tree[0]) + tree_sum(tree[1])


def a_tree(n: int, rng: np.random.Generator) -> Any:
    if n < 2:
        return (rng.uniform(size=3).astype(np.float32),)
    return (a_tree(n // 2, rng), a_tree(n - n // 2, rng))


text(
    tree_sum,
    """
def main(tree: Object) -> Tensor((3,), float32):
    leaf = extern("test.is_leaf")(tree)
    if leaf:
        x = match_cast(tree[0], Tensor((3,), float32))
        r: Tensor((3,), float32) = x
    else:
        r = add(@main(tree[0]), @main(tree[1]))
    return r
""",
    lambda n, rng: [a_tree(n, rng)],
    functions={"test.is_leaf": lambda tree: len(tree) == 1},
)


def matrix_power(x, n):
    return np.linalg.matrix_power(x, int(n)).astype(np.float32)


text(
    matrix_power,
    f"""
def main(x: Tensor((3, 3), float32), n: {INT0}) -> Tensor((3, 3), float32):
    def go(i: {INT0}, y: Tensor((3, 3), float32)) -> Tensor((3, 3), float32):
        if less(i, n):
            r = call(go, add(i, const(1, int64)), matmul(y, x))
        else:
            r = y
        return r
    return call(go, const(0, int64), const(data[0], float32, shape=(3, 3)))

data:
    0: "AACAPwAAAAAAAAAAAAAAAAAAgD8AAAAAAAAAAAAAAAAAAIA/"
""",
    lambda n, rng: [rng.uniform(-0.5, 0.5, (3, 3)).astype(np.float32), np.array(n)],
)


def growing_list(x, n):
    return np.concatenate([x * i for i in range(int(n) + 1)])


text(
    growing_list,
    f"""
def main(x: Tensor((2,), float32), n: {INT0}) -> Tensor(ndim=1, float32):
    def go(i: {INT0}, y: Tensor((k,), float32)) -> Tensor(ndim=1, float32):
        if less(n, i):
            r: Tensor(ndim=1, float32) = y
        else:
            r = call(go, add(i, const(1, int64)), concat(y, mul(x, cast(i, dtype="float32")), axis=0))
        return r
    return call(go, const(1, int64), mul(x, const(0.0, float32)))
""",
    lambda n, rng: [rng.uniform(size=2).astype(np.float32), np.array(n)],
)


def beam_search_step(scores, logits):
    beams, words = logits.shape[1:]
    total = (scores[:, :, None] + logits).reshape(-1, beams * words)
    order = np.argsort(-total, 1, kind="stable")[:, :beams]
    return np.take_along_axis(total, order, 1), order // words, order % words


def _beam(bb: BlockBuilder, scores: Var, logits: Var) -> Expr:
    total = bb.emit(op.reshape(op.add(op.unsqueeze(scores, 2), logits), (N, 3 * T)))
    best = bb.emit(op.topk(total, 3, 1))
    values, order = (bb.emit(TupleGetItem(best, i)) for i in range(2))
    words = bb.emit(op.reshape(op.shape_to_tensor(ShapeExpr((T,))), ()))
    return bb.emit(Tuple([values, bb.emit(op.floor_div(order, words)), bb.emit(op.mod(order, words))]))


written(beam_search_step, _beam, scores=tensor(N, 3), logits=tensor(N, 3, T))


# --- functions as values


def closure_captures(x, y):
    return (x + y) * y + y


text(
    closure_captures,
    """
def main(x: Tensor((n,), float32), y: Tensor((n,), float32)) -> Tensor((n,), float32):
    def shift(a: Tensor((n,), float32)) -> Tensor((n,), float32):
        return add(a, y)
    def scale(a: Tensor((n,), float32)) -> Tensor((n,), float32):
        return mul(call(shift, a), y)
    return add(call(scale, x), y)
""",
)

UNARY = "Callable((Tensor((n,), float32)) -> Tensor((n,), float32))"


def function_passed(x):
    return relu(relu(x) - 1) - 1 + 0 * x


text(
    function_passed,
    f"""
def twice(f: {UNARY}, x: Tensor((n,), float32)) -> Tensor((n,), float32):
    return call(f, call(f, x))

def step(x: Tensor((n,), float32)) -> Tensor((n,), float32):
    return sub(relu(x), const(1.0, float32))

def main(x: Tensor((n,), float32)) -> Tensor((n,), float32):
    return @twice(@step, x)
""",
)


def function_returned(x, y):
    return (x - y, y - y)


text(
    function_returned,
    f"""
def subtract_from(y: Tensor((n,), float32)) -> {UNARY}:
    def f(a: Tensor((n,), float32)) -> Tensor((n,), float32):
        return sub(a, y)
    return f

def main(x: Tensor((n,), float32), y: Tensor((n,), float32)) -> Tuple(Tensor((n,), float32), Tensor((n,), float32)):
    f = @subtract_from(y)
    return (call(f, x), call(f, y))
""",
)


def functions_composed(x):
    return np.exp(-np.abs(x))


text(
    functions_composed,
    f"""
def compose(f: {UNARY}, g: {UNARY}) -> {UNARY}:
    def h(a: Tensor((n,), float32)) -> Tensor((n,), float32):
        return call(f, call(g, a))
    return h

def main(x: Tensor((n,), float32)) -> Tensor((n,), float32):
    def size(a: Tensor((n,), float32)) -> Tensor((n,), float32):
        return abs(a)
    def minus(a: Tensor((n,), float32)) -> Tensor((n,), float32):
        return neg(a)
    def power(a: Tensor((n,), float32)) -> Tensor((n,), float32):
        return exp(a)
    f = @compose(power, minus)
    return call(@compose(f, size), x)
""",
)


def chosen_function(x, c):
    return np.exp(x) if c else x * x


text(
    chosen_function,
    f"""
def square(x: Tensor((n,), float32)) -> Tensor((n,), float32):
    return mul(x, x)

def main(x: Tensor((n,), float32), c: {BOOL0}) -> Tensor((n,), float32):
    def power(a: Tensor((n,), float32)) -> Tensor((n,), float32):
        return exp(a)
    if c:
        f: {UNARY} = power
    else:
        f = @square
    return call(f, x)
""",
)


def callback(f, x):
    return f(x) + 1


written(
    callback,
    lambda bb, f, x: bb.emit(op.add(bb.match_cast(bb.emit(Call(f, [x])), tensor(N)), np.float32(1))),
    f=CallableStructInfo(None, ObjectStructInfo()),
    x=tensor(N),
    draw=lambda n, rng: [lambda x: np.asarray(x) * 2, rng.uniform(size=n).astype(np.float32)],
)


# --- tuples, scalars, Python functions in the middle


def nested_tuples(pair, x):
    (a, (b, c)) = pair
    return (c, (a + x, (b,)), ())


_PAIR = TupleStructInfo([tensor(N), TupleStructInfo([tensor(N), tensor(T)])])


def _nested(bb: BlockBuilder, pair: Var, x: Var) -> Expr:
    inner = bb.emit(TupleGetItem(pair, 1))
    total = bb.emit(op.add(bb.emit(TupleGetItem(pair, 0)), x))
    return bb.emit(
        Tuple([bb.emit(TupleGetItem(inner, 1)), Tuple([total, Tuple([bb.emit(TupleGetItem(inner, 0))])]), Tuple([])])
    )


written(nested_tuples, _nested, pair=_PAIR, x=tensor(N))


def scalars_and_strings(k, f, s):
    return (k + 1, f, s, (k, 2), 2.5)


written(
    scalars_and_strings,
    lambda bb, k, f, s: bb.emit(Tuple(map(as_expr, (SymVar("k") + 1, f, s, ShapeExpr((SymVar("k"), 2)), 2.5)))),
    k=PrimStructInfo("int64", SymVar("k")),
    f=PrimStructInfo("float64"),
    s=ObjectStructInfo(),
    draw=lambda n, rng: [n, n / 2, "text" * n],
)


def python_in_the_middle(x):
    return relu(np.sort(x * 2, 1))


def _python(bb: BlockBuilder, x: Var) -> Expr:
    called = bb.emit(call_packed("test.sort", bb.emit(op.mul(x, np.float32(2))), struct_info=ObjectStructInfo()))
    return bb.emit(op.relu(bb.match_cast(called, tensor(N, 4))))


written(python_in_the_middle, _python, x=tensor(N, 4))
PROGRAMS["python_in_the_middle"].functions = {"test.sort": lambda x: np.sort(np.asarray(x), 1)}


def python_fills_the_result(x):
    return -(np.cbrt(x) + 1)


def fill_cbrt(x: Any, out: Any) -> None:
    np.copyto(np.asarray(out), np.cbrt(np.asarray(x)))


written(
    python_fills_the_result,
    lambda bb, x: bb.emit(op.neg(op.add(bb.emit(call_dps_packed("test.cbrt", [x], tensor(N, 3))), np.float32(1)))),
    x=tensor(N, 3),
)
PROGRAMS["python_fills_the_result"].functions = {"test.cbrt": fill_cbrt}


def python_makes_the_size(x):
    return np.unique(x) * 2


def _unique(bb: BlockBuilder, x: Var) -> Expr:
    found = bb.emit(call_packed("test.unique", x))
    return bb.emit(op.mul(bb.match_cast(found, tensor(SymVar("u"), dtype="int64")), np.int64(2)))


written(python_makes_the_size, _unique, x=tensor(N, dtype="int64"))
PROGRAMS["python_makes_the_size"].functions = {"test.unique": lambda x: np.unique(np.asarray(x))}


# --- the checks


def random_value(info: StructInfo | None, n: int, rng: np.random.Generator) -> Any:
    """A value of this struct info with batch `n`."""
    if isinstance(info, TupleStructInfo):
        return tuple(random_value(inner, n, rng) for inner in info.fields)
    assert isinstance(info, TensorStructInfo) and info.shape is not None, info
    sizes = {"n": n, **OTHER_SYMBOLS}
    shape = tuple(dim if isinstance(dim, int) else sizes[str(dim)] for dim in info.shape)
    if info.dtype == "bool":
        return np.asarray(rng.integers(0, 2, shape)).astype(bool)
    if info.dtype == "int64":
        return np.asarray(rng.integers(0, 5, shape))
    return rng.standard_normal(shape).astype(info.dtype or "float32")


def plain(value: Any) -> Any:
    """A result with tensors as arrays and arrays as tuples."""
    if isinstance(value, (tuple, list)):
        return tuple(map(plain, value))
    return value if isinstance(value, (int, float, str)) else np.asarray(value)


def assert_same(got: Any, expected: Any) -> None:
    if isinstance(expected, tuple):
        assert isinstance(got, tuple) and len(got) == len(expected)
        for ours, theirs in zip(got, expected, strict=True):
            assert_same(ours, theirs)
    elif isinstance(expected, np.ndarray):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    else:
        assert got == expected


def test_there_are_enough() -> None:
    assert len(PROGRAMS) >= 40


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str) -> None:
    check_program(PROGRAMS[name])


def check_program(program: Program) -> None:
    """Compiles a program once, and compares the machine, the reference interpreter and numpy for all batches."""
    check_well_formed(program.module)
    assert_round_trip(program.module)
    assert_round_trips_after_every_pass(program.module)
    executable = pyvm.compile(program.module, check=True)
    for function, call in program.functions.items():
        pyvm.register_func(function, call, override=True)
    machine = pyvm.VirtualMachine(executable)
    functions = _Functions(program.functions)
    for n in program.batches:
        rng = np.random.default_rng(n)
        params = program.module["main"].params
        args = program.draw(n, rng) if program.draw else [random_value(p.struct_info, n, rng) for p in params]
        expected = plain(program.oracle(*args))
        assert_same(plain(machine["main"](*args)), expected)
        assert_same(plain(run(executable, "main", args, functions)), expected)


class _Functions(Mapping[str, Callable[..., Any]]):
    """The native kernels and the functions of a program."""

    def __init__(self, own: Mapping[str, Callable[..., Any]]) -> None:
        self._own = own

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self._own[name] if name in self._own else NATIVE[name]

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in NATIVE

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)
