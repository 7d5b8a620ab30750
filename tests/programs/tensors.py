"""Programs on tensors with symbolic shapes, and with sizes that depend on data."""

from __future__ import annotations

import numpy as np

import pyvm
from pyvm import op
from pyvm.ir import BlockBuilder, Expr, PrimStructInfo, ShapeExpr, ShapeStructInfo, SymVar, Tuple, Var
from tests.ir_text import tensor
from tests.programs.table import N, T, relu, softmax, written

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
