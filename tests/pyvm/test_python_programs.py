"""Programs written as Python functions: the function itself on numpy arrays is the oracle, where numpy can run it."""
# ruff: noqa: F821, UP037
# Without `from __future__ import annotations`: these are read as values.

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pyvm
from pyvm import Shape, Tensor, op
from pyvm.frontend.python import PythonFunction
from tests.programs import Draw, Program, check_program, relu, softmax
from tests.programs.control import a_tree

RNG = np.random.default_rng(0)
WEIGHTS = [RNG.standard_normal((4, 4)).astype(np.float32) for _ in range(3)]
PROGRAMS: dict[str, tuple[PythonFunction, dict[str, Any]]] = {}
Unary = Callable[[Tensor["n", "float32"]], Tensor["n", "float32"]]


def program(oracle: Callable[..., Any], draw: Draw | None = None, **more: Any) -> Callable[..., Any]:
    """Adds the decorated function as a program, under its name; it is read when it is tested."""

    def add(function: Callable[..., Any]) -> PythonFunction:
        made = pyvm.function(name="main")(function)
        PROGRAMS[function.__name__] = made, {"oracle": oracle, "draw": draw, **more}
        return made

    return add


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


# --- straight lines


def _mlp(x):
    for w in WEIGHTS:
        x = relu(x @ w)
    return x


@program(_mlp)
def mlp(x: Tensor["n", 4, "float32"]):
    for w in WEIGHTS:
        x = op.maximum(x @ w, 0)
    return x


def _attention(q, k, v, mask):
    scores = np.where(mask[:, None, :], q @ k.transpose(0, 2, 1) / 2, np.float32(-1e9))
    return softmax(scores) @ v


@program(_attention)
def attention(
    q: Tensor["n", "t", 4, "float32"],
    k: Tensor["n", "t", 4, "float32"],
    v: Tensor["n", "t", 4, "float32"],
    mask: Tensor["n", "t", "bool"],
):
    scores = q @ k.transpose(0, 2, 1) / 4**0.5
    return op.softmax(op.where(mask[:, None], scores, -1e9)) @ v


def _indexing(x, i):
    return x[i], x[:, 1:3], x[::2], x[-1], x[..., None, 0], x[i, 2], x[:, None], x[1:, ::-1], x[[0, 0]]


@program(_indexing, lambda n, rng: [floats(n, 4), n - 1], batches=(1, 2, 7, 64))
def indexing(x: Tensor["n", 4, "float32"], i: int):
    return x[i], x[:, 1:3], x[::2], x[-1], x[..., None, 0], x[i, 2], x[:, None], x[1:, ::-1], x[np.array([0, 0])]


def _operators(x, y, k):
    return (
        (x + y) * 2 - 3 / (x * x + 1),
        x // 0.5 + x % 0.5,
        -(x**2),
        (k + 5) // 3 % 7 * 2,
        (k & 6) | (k ^ 1),
        (x > y) & ~(x < 0) | (x == y),
        abs(x) <= 1,
        x.T @ y,
    )


@program(_operators, lambda n, rng: [floats(n, 3), floats(n, 3), rng.integers(0, 9, n)])
def operators(x: Tensor["n", 3, "float32"], y: Tensor["n", 3, "float32"], k: Tensor["n", "int64"]):
    return (
        (x + y) * 2 - 3 / (x * x + 1),
        x // 0.5 + x % 0.5,
        -(x**2),
        (k + 5) // 3 % 7 * 2,
        (k & 6) | (k ^ 1),
        (x > y) & ~(x < 0) | (x == y),
        abs(x) <= 1,
        x.T @ y,
    )


def _sizes(x, s, k):
    n = x.shape[0]
    return x.reshape(s), n * 2 + k, max(n, k), min(n // 2, 3), x.size, np.float32(n) * x, (n, (k, -k))


@program(_sizes, lambda n, rng: [floats(n, 6), Shape((2 * n, 3)), n - 3])
def sizes(x: Tensor["n", 6, "float32"], s: Shape["a", "b"], k: int):
    n = len(x)
    return x.reshape(s), n * 2 + k, max(n, k), min(n // 2, 3), x.size, n * x, (n, (k, -k))


class Layer:
    """A callable object with weights."""

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights

    def __call__(self, x: Any) -> Any:
        return op.relu(x @ self.weights)


LAYERS = [Layer(weights) for weights in WEIGHTS]


def scaled(x: Any, by: float = 2.0) -> Any:
    """A plain function, read where it is called."""
    if x.ndim == 2:
        return x * by, x.shape
    return x, None


def _objects(x):
    sums = []
    for w in WEIGHTS:
        x = relu(x @ w)
        sums.append(x.sum(0))
    return np.stack(sums), x * 3, x.shape[0], tuple(s[0] for s in sums)


@program(_objects)
def objects(x: Tensor["n", 4, "float32"]):
    sums = []
    for _, layer in enumerate(LAYERS):
        x = layer(x)
        sums.append(x.sum(axis=0))
    y, (rows, _) = scaled(x, by=3.0)
    return op.stack(sums), y, rows, [s[0] for s in sums]


# --- branches


def _early_exit(x, w):
    if np.abs(x).sum() < 4:
        return x
    y = relu(x @ w)
    return y if y.sum() > 10 else y - 1


@program(_early_exit)
def early_exit(x: Tensor["n", 4, "float32"], w: Tensor[4, 4, "float32"]):
    if abs(x).sum() < 4:
        return x
    y = op.relu(x @ w)
    return y if y.sum() > 10 else y - 1


def _logic(x, flag, k):
    a, b = x.sum() > 0 and k > 2, flag or (x > 2).any()
    y, z = np.float64(1), 3
    if (a and not b) or (not flag and 0 <= k < 7):
        y, z = np.float64((x * 0.5).sum()), 2
    return y * 1.0, z * k, x if flag else -x


@program(_logic, lambda n, rng: [floats(n), n % 2 == 0, n - 1])
def logic(x: Tensor["n", "float32"], flag: bool, k: int):
    a = x.sum() > 0 and k > 2
    b = flag or (x > 2).any()
    y = 1.0
    if a and not b or not flag and 0 <= k < 7:
        y = (x * 0.5).sum()
        z = 2
    else:
        z = 3
    return y * 1.0, z * k, x if flag else -x


def _sizes_meet(x, flag):
    y = np.concatenate([x, x]) if flag else x
    return y + 1, y.shape[0]


@program(_sizes_meet, lambda n, rng: [floats(n, 2), n % 2 == 0])
def sizes_meet(x: Tensor["n", 2, "float32"], flag: bool):
    y = op.concatenate([x, x]) if flag else x
    return y + 1, y.shape[0]


# --- loops


def _rnn(x, h, w, u):
    for step in range(x.shape[1]):
        h = np.tanh(x[:, step] @ w + h @ u)
    return h


@program(_rnn)
def rnn(
    x: Tensor["n", "t", 4, "float32"],
    h: Tensor["n", 3, "float32"],
    w: Tensor[4, 3, "float32"],
    u: Tensor[3, 3, "float32"],
):
    for step in range(x.shape[1]):
        h = op.tanh(x[:, step] @ w + h @ u)
    return h


def _newton(x):
    y = np.maximum(x, np.float32(1))
    while y.size and np.abs(y * y - x).max() > 1e-3:
        y = (y + x / y) / 2
    return y


@program(_newton, lambda n, rng: [rng.uniform(0.1, 9, n).astype(np.float32)])
def newton(x: Tensor["n", "float32"]):
    y = op.maximum(x, 1.0)
    while y.size and abs(y * y - x).max() > 1e-3:
        y = (y + x / y) / 2
    return y


def _collatz(n):
    n, steps = n + 1, 0
    while n != 1:
        n, steps = (n // 2 if n % 2 == 0 else 3 * n + 1), steps + 1
    return steps


@program(_collatz, lambda n, rng: [n])
def collatz(n: int) -> int:
    n += 1
    steps = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    return steps


def _row_search(x, limit):
    total = np.float32(0)
    for i in range(len(x)):
        if x[i].sum() > limit:
            return i, x[i] * 1
        total += x[i].sum()
        if total < -4:
            break
    return -1, np.full(4, total, np.float32)


@program(_row_search, lambda n, rng: [floats(n, 4), 2.5])
def row_search(x: Tensor["n", 4, "float32"], limit: float):
    total = 0.0
    for i in range(x.shape[0]):
        row = x[i]
        if row.sum() > limit:
            return i, row * 1
        total = total + row.sum()
        if total < -4:
            break
    return -1, op.zeros(4) + total


def _nested_loops(x):
    total = np.float32(0)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            if x[i, j] < 0:
                continue
            total += x[i, j]
            if total > 5:
                return np.float32(total)
    return np.float32(total * 2)


@program(_nested_loops)
def nested_loops(x: Tensor["n", "t", "float32"]) -> Tensor["float32"]:
    total = 0.0
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            if x[i, j] < 0:
                continue
            total += x[i, j]
            if total > 5:
                return total
    return total * 2


def _growing(x, n):
    y = x[:0]
    for i in range(1, n + 1):
        y = np.concatenate([y, x * i])
    return y


@program(_growing, lambda n, rng: [floats(2), n])
def growing(x: Tensor["m", "float32"], n: int):
    y = x[:0]
    for i in range(1, n + 1):
        y = op.concatenate([y, x * i])
    return y


def _changed_rows(x):
    for i in range(len(x) - 1, -1, -2):
        x[i] = x[i] * i
    return x


@program(lambda x: _changed_rows(x.copy()))
def changed_rows(x: Tensor["n", 4, "float32"]):
    for i in range(x.shape[0] - 1, -1, -2):
        x[i] *= i
    return x


# --- recursion, closures, functions as values


@program(lambda n: [0, 1, 1, 2, 3, 5, 8, 13][n], lambda n, rng: [min(n, 7)])
def fib(n: int) -> int:
    if n < 2:
        return n
    return fib(n - 1) + fib(n - 2)


@pyvm.function
def odd(n: int) -> bool:
    return False if n == 0 else even(n - 1)


@pyvm.function
def even(n: int) -> bool:
    return True if n == 0 else odd(n - 1)


@program(lambda n: n % 2 == 0, lambda n, rng: [n])
def mutual(n: int) -> bool:
    return even(n)


@program(math.gcd, lambda n, rng: [n, 36])
def divisor(a: int, b: int) -> int:
    while b != 0:
        a, b = b, a % b
    return a


def _tree_sum(tree):
    return tree[0] if len(tree) == 1 else _tree_sum(tree[0]) + _tree_sum(tree[1])


@program(_tree_sum, lambda n, rng: [a_tree(n, rng)], functions={"test.is_leaf": lambda tree: len(tree) == 1})
def tree_sum(tree: object) -> Tensor[3, "float32"]:
    if pyvm.call_packed("test.is_leaf", tree, returns=bool):
        leaf: Tensor[3, "float32"] = tree[0]
        return leaf
    return tree_sum(tree[0]) + tree_sum(tree[1])


@program(lambda x, y: (x + y) * y + y)
def closures(x: Tensor["n", "float32"], y: Tensor["n", "float32"]):
    def shift(a: Tensor["n", "float32"]):
        return a + y

    def scale(a: Tensor["n", "float32"]):
        return shift(a) * y

    return scale(x) + y


@pyvm.function
def twice(f: Unary, x: Tensor["n", "float32"]):
    return f(f(x))


@pyvm.function
def step_down(x: Tensor["n", "float32"]):
    return op.relu(x) - 1


@program(lambda x: relu(relu(x) - 1) - 1)
def passed(x: Tensor["n", "float32"]):
    return twice(step_down, x)


@pyvm.function
def subtracting(y: Tensor["n", "float32"]) -> Unary:
    def f(a: Tensor["n", "float32"]):
        return a - y

    return f


@program(lambda x, y: (x - y, y - y))
def returned(x: Tensor["n", "float32"], y: Tensor["n", "float32"]):
    f = subtracting(y)
    return f(x), f(y)


# --- data-dependent sizes, functions of Python


@program(lambda x: (x[x > 0], int((x > 0).sum())))
def positive(x: Tensor["n", "float32"]):
    found = x[x > 0]
    return found, found.shape[0]


@program(lambda x: np.unique(x) * 2, functions={"test.unique": lambda x: np.unique(np.asarray(x))})
def unique_doubled(x: Tensor["n", "int64"]):
    u: Tensor["u", "int64"] = pyvm.call_packed("test.unique", x)
    return u * 2


def _fill_cbrt(x: Any, out: Any) -> None:
    np.copyto(np.asarray(out), np.cbrt(np.asarray(x)))


@program(lambda x: -(np.cbrt(x) + 1), functions={"test.cbrt": _fill_cbrt})
def filled(x: Tensor["n", 3, "float32"]):
    return -(pyvm.call_dps_packed("test.cbrt", x, out=Tensor["n", 3, "float32"]) + 1)


def _beam(scores, logits):
    beams, words = logits.shape[1:]
    total = (scores[:, :, None] + logits).reshape(-1, beams * words)
    order = np.argsort(-total, 1, kind="stable")[:, :beams]
    return np.take_along_axis(total, order, 1), order // words, order % words


@program(_beam)
def beam_step(scores: Tensor["n", 3, "float32"], logits: Tensor["n", 3, "t", "float32"]):
    n, beams, words = logits.shape
    total = (scores[:, :, None] + logits).reshape(n, beams * words)
    best, order = op.topk(total, beams)
    return best, order // words, order % words


@pyvm.function
def above(x: Tensor["n", "float32"], limit: int) -> bool:
    return x.sum() > limit


def _scalars(x, k):
    if 0 < x.sum() < 9:
        return k > 3, np.array(k / 2), len(x)
    return len(x) == 7, np.array(x.sum() * 2), len(x) ** 2


@program(_scalars, lambda n, rng: [floats(n), n - 1])
def scalars(x: Tensor["n", "float32"], k: int) -> tuple[bool, float, int]:
    if above(x, 0) and above(-x, -9):
        return k > 3, k / 2, x.shape[0]
    return x.shape[0] == 7, float(x.sum()) * 2, len(x) ** 2


def _largest(x):
    return x.max(), int(x.argmax())


@program(_largest, batches=(1, 2, 7, 64))
def largest(x: Tensor["n", "float32"]):
    best = x[0]
    arg = 0
    for i in range(1, len(x)):
        v = x[i]
        if v > best:
            best, arg = v, i
    return best, arg


def _deep(x, depth):
    y = x
    for _ in range(depth):
        y = np.tanh(y) + x
    return y


@program(_deep, lambda n, rng: [floats(n, 2), 50 * n])
def deep(x: Tensor["n", 2, "float32"], depth: int):
    def again(y: Tensor["n", 2, "float32"], left: int) -> Tensor["n", 2, "float32"]:
        if left == 0:
            return y
        return again(op.tanh(y) + x, left - 1)

    return again(x, depth)


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str) -> None:
    function, more = PROGRAMS[name]
    check_program(Program(function.module, **more))


def test_all_run_for_all_batches() -> None:
    assert len(PROGRAMS) >= 25
    assert [name for name, (_, more) in PROGRAMS.items() if "batches" in more] == ["indexing", "largest"]  # need a row
