"""Programs with branches, loops and recursion."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyvm import op
from pyvm.ir import BlockBuilder, Call, Expr, PrimStructInfo, ShapeExpr, Tuple, TupleGetItem, Var
from tests.ir_text import tensor
from tests.programs.table import BOOL0, FLOAT0, INT0, N, T, relu, text, written

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
