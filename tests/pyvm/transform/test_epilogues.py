"""Products and convolutions that take over what follows them; packed weights. Text before and after, and numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pyvm
from pyvm import op
from pyvm.ir import IRModule, SymVar, Tuple, check_well_formed, parse
from pyvm.op.activation import ACTIVATIONS
from pyvm.op.dense import pack_columns
from pyvm.transform import (
    DEFAULT_PIPELINE,
    eliminate_dead_code,
    fuse_activation,
    fuse_bias,
    fuse_linear,
    fuse_residual,
    legalize,
    pack_weights,
    run_passes,
)
from tests.ir_evaluator import run_module
from tests.ir_text import build, expect, tensor

N = SymVar("n")
F32 = np.float32
PASSES = (fuse_bias, eliminate_dead_code, fuse_linear, eliminate_dead_code, fuse_residual, fuse_activation)


def optimized(module: IRModule, *passes) -> IRModule:
    return check_well_formed(run_passes(module, [*passes, eliminate_dead_code], check=True))


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) / 4).astype(F32)


def test_a_layer_of_a_transformer() -> None:
    w, v, zeros = np.zeros((2, 32), F32), np.zeros((32, 32), F32), np.zeros(32, F32)

    def body(bb, x, r):
        h = bb.emit(op.add(bb.emit(op.matmul(x, w), "p"), zeros), "h")
        g = bb.emit(op.gelu(h), "g")
        o = bb.emit(op.matmul(g, v), "o")
        return bb.emit(op.relu(bb.emit(op.add(r, o), "s")), "t")

    module = build(body, x=tensor(N, 3, 2), r=tensor(N, 3, 32))
    expect(
        module,
        """
        def main:
            with dataflow():
                p = matmul(x, const([0.0, 0.0, 0.0, 0.0, ...], float32, shape=(2, 32)))
                h = add(p, const([0.0, 0.0, 0.0, 0.0, ...], float32, shape=(32,)))
                g = gelu(h)
                o = matmul(g, const([0.0, 0.0, 0.0, 0.0, ...], float32, shape=(32, 32)))
                s = add(r, o)
                t = relu(s)
                out = t
            return out
        """,
    )
    expect(
        optimized(module, *PASSES, pack_weights),
        """
        def main:
            with dataflow():
                g = linear(x, const([0.0, 0.0, 0.0, 0.0, ...], float32, shape=(1, 2, 32)), \
const([0.0, 0.0, 0.0, 0.0, ...], float32, shape=(32,)), activation="gelu", layout="panels", columns=32)
                out = linear(g, const([0.0, 0.0, 0.0, 0.0, ...], float32, shape=(1, 32, 32)), r, activation="relu", \
residual=True, layout="panels", columns=32)
            return out
        """,
    )


def test_a_residual_block() -> None:
    w = np.zeros((4, 4, 1, 1), F32)

    def body(bb, x):
        a = bb.emit(op.conv(x, w), "a")
        b = bb.emit(op.conv(a, w), "b")
        c = bb.emit(op.conv(x, w), "c")
        d = bb.emit(op.add(c, b), "d")
        e = bb.emit(op.clip(d, 0, 6), "e")
        return bb.emit(Tuple([e, bb.emit(op.relu(a), "f")]), "g")

    module = build(body, x=tensor(1, 4, 5, 5))
    expect(
        optimized(module, fuse_residual, fuse_activation),
        """
        def main:
            with dataflow():
                a = conv(x, const([0.0, 0.0, 0.0, 0.0, ...], float32, shape=(4, 4, 1, 1)), strides=(1, 1), \
pads=(0, 0, 0, 0), dilations=(1, 1), group=1, activation="none")
                b = conv(a, const([0.0, 0.0, 0.0, 0.0, ...], float32, shape=(4, 4, 1, 1)), strides=(1, 1), \
pads=(0, 0, 0, 0), dilations=(1, 1), group=1, activation="none")
                e = conv(x, const([0.0, 0.0, 0.0, 0.0, ...], float32, shape=(4, 4, 1, 1)), b, strides=(1, 1), \
pads=(0, 0, 0, 0), dilations=(1, 1), group=1, activation="clip", residual=True, activation_params=(0.0, 6.0))
                f = relu(a)
                out = (e, f)
            return out
        """,
    )


def test_what_is_left_alone() -> None:
    """Few columns, other types, results that somebody else reads, sums that broadcast."""
    w = weights(8, 33)

    def body(bb, x, row, h, d):
        a = bb.emit(op.matmul(x, weights(8, 3)), "few")
        b = bb.emit(op.matmul(h, np.zeros((8, 32), np.float16)), "half")
        c = bb.emit(op.matmul(x, bb.emit(op.transpose(d, (1, 0)), "d1")), "no_constant")
        e = bb.emit(op.matmul(x, weights(8, 32)), "shared")
        f = bb.emit(op.add(bb.emit(op.matmul(row, weights(8, 32)), "one_row"), e), "broadcast")
        return bb.emit(Tuple([a, b, c, e, f, bb.emit(op.matmul(x, w), "padded_too_much")]), "t")

    text = str(
        optimized(
            build(body, x=tensor(N, 8), row=tensor(1, 8), h=tensor(N, 8, dtype="float16"), d=tensor(32, 8)), *PASSES
        )
    )
    assert text.count("linear(") == 2 and text.count(" matmul(") == 4 and "residual" not in text


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [0, 1, 7, 40])
def test_numbers(n: int, dtype: str) -> None:
    def body(bb, x):
        values = []
        for i, name in enumerate(ACTIVATIONS):
            y = bb.emit(op.add(bb.emit(op.matmul(x, weights(32, 64, seed=i).astype(dtype))), weights(64).astype(dtype)))
            y = bb.emit(op.add(y, bb.emit(op.concat([x, x], 1)))) if i % 2 else y
            if name == "clip":
                y = bb.emit(op.clip(y, -0.5, 0.5))
            elif name != "none":
                y = bb.emit(getattr(op, name)(y))
            values.append(y)
        right, more = weights(32, 64).astype(dtype), weights(1, 32).astype(dtype)
        z = bb.emit(op.gemm(values[0], right, more, 1.0, 2.0, False, True))
        return bb.emit(Tuple([*values, bb.emit(op.clip(z, None, 0.25))]))

    module = build(body, x=tensor(N, 32, dtype=dtype))
    ready = run_passes(module, DEFAULT_PIPELINE[: DEFAULT_PIPELINE.index(legalize)], check=True)
    assert parse(str(ready)).script() == str(ready)
    text = ready.script(elide_constants=True)
    assert text.count("linear(") == len(ACTIVATIONS) + 1 and text.count('layout="panels"') == len(ACTIVATIONS) + 1
    x = np.random.default_rng(n).standard_normal((n, 32)).astype(dtype)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    got = pyvm.VirtualMachine(pyvm.compile(module, check=True))["main"](x)
    oracle, references = run_module(module, {"x": x}), run_module(ready, {"x": x})
    for mine, reference, expected in zip(got, references, oracle, strict=True):
        np.testing.assert_allclose(mine.numpy(), expected, tolerance, tolerance)
        np.testing.assert_allclose(reference, expected, tolerance, tolerance)


def test_a_constant_is_packed_once_and_travels(tmp_path: Path) -> None:
    w = weights(48, 64)

    def body(bb, x):
        y = bb.emit(op.matmul(x, w))
        return bb.emit(Tuple([y, bb.emit(op.matmul(bb.emit(op.neg(x)), w))]))

    executable = pyvm.compile(build(body, x=tensor(N, 48)))
    packed = pack_columns(w)
    arrays = [np.asarray(c) for c in executable.constants if getattr(c, "ndim", 0) == 3]
    assert len(arrays) == 1 and np.array_equal(arrays[0], packed)
    executable.save(tmp_path / "model.vmx")
    x = weights(5, 48, seed=1)
    got = pyvm.VirtualMachine(tmp_path / "model.vmx")["main"](x)
    np.testing.assert_allclose(got[0].numpy(), x @ w, 1e-5, 1e-5)
