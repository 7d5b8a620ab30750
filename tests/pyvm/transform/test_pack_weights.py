"""Which convolutions get transformed weights, that their numbers stay, and what a file with forged weights does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyvm
from pyvm import op
from pyvm.ir import IRModule, SymVar, Tuple, parse
from pyvm.transform import DEFAULT_PIPELINE, legalize, pack_weights, run_passes
from tests.ir_evaluator import run_module
from tests.ir_text import build, tensor
from vmcore import errors

N, H = SymVar("n"), SymVar("h")


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) / 16).astype(np.float32)


def conv_module(x: tuple[Any, ...], w: tuple[int, ...], dtype: str = "float32", **attrs: Any) -> IRModule:
    def body(bb, image):
        return bb.emit(op.conv(image, weights(*w).astype(dtype), **attrs), "y")

    return build(body, image=tensor(*x, dtype=dtype))


def kernels(module: IRModule) -> set[str]:
    """The kernels that the compiled module calls."""
    return set(re.findall(r"kernel\.(\w+)", pyvm.compile(module).as_text()))


CHOSEN = {
    "many channels": ((1, 64, 28, 28), (64, 64, 3, 3), {"pads": 1}),
    "any batch, any size": ((N, 64, H, 30), (64, 64, 3, 3), {"pads": 1}),
    "a small map of many channels": ((1, 256, 7, 7), (256, 256, 3, 3), {"pads": 1}),
    "groups of many channels": ((2, 128, 20, 20), (128, 64, 3, 3), {"pads": (0, 1, 1, 2), "group": 2}),
}
LEFT = {
    "stride": ((1, 64, 28, 28), (64, 64, 3, 3), {"strides": 2}),
    "dilation": ((1, 64, 28, 28), (64, 64, 3, 3), {"dilations": 2}),
    "another window": ((1, 64, 28, 28), (64, 64, 5, 5), {}),
    "one axis": ((1, 64, 28), (64, 64, 3), {}),
    "far padding": ((1, 64, 28, 28), (64, 64, 3, 3), {"pads": 3}),
    "depthwise": ((1, 64, 28, 28), (64, 1, 3, 3), {"group": 64}),
    "few channels": ((1, 3, 224, 224), (64, 3, 3, 3), {}),
    "two tiles": ((1, 64, 4, 6), (64, 64, 3, 3), {}),
    "doubles": ((1, 64, 28, 28), (64, 64, 3, 3), {"dtype": "float64"}),
}


@pytest.mark.parametrize("name", [*CHOSEN, *LEFT])
def test_choice_of_winograd(name: str) -> None:
    x, w, attrs = {**CHOSEN, **LEFT}[name]
    assert ("conv_winograd" in kernels(conv_module(x, w, **attrs))) == (name in CHOSEN)


def test_weights_that_are_no_constant_stay() -> None:
    def body(bb, image, w):
        return bb.emit(op.conv(image, w, pads=1), "y")

    module = build(body, image=tensor(1, 64, 28, 28), w=tensor(64, 64, 3, 3))
    assert kernels(module) == {"conv"}


def network() -> IRModule:
    """Two layers of one weight and one that ends in a sum and an activation."""
    shared = weights(32, 32, 3, 3)

    def body(bb, x):
        a = bb.emit(op.relu(bb.emit(op.conv(x, shared, weights(32, seed=1), pads=1), "a1")), "a")
        b = bb.emit(op.conv(a, shared, pads=(0, 1, 2, 1)), "b")
        c = bb.emit(op.conv(b, weights(32, 32, 3, 3, seed=2), pads=1), "c1")
        c = bb.emit(op.silu(bb.emit(op.add(c, x), "s")), "c")
        return bb.emit(Tuple([b, c]), "t")

    return build(body, x=tensor(N, 32, 15, 18))


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_numbers(n: int) -> None:
    module = network()
    ready = run_passes(module, DEFAULT_PIPELINE[: DEFAULT_PIPELINE.index(legalize)], check=True)
    text = ready.script(elide_constants=True)
    assert text.count('layout="winograd"') == 3 and parse(str(ready)).script() == str(ready)
    x = np.random.default_rng(n).standard_normal((n, 32, 15, 18)).astype(np.float32)
    got = pyvm.VirtualMachine(pyvm.compile(module, check=True))["main"](x)
    oracle, references = run_module(module, {"x": x}), run_module(ready, {"x": x})
    for mine, reference, expected in zip(got, references, oracle, strict=True):
        np.testing.assert_allclose(mine.numpy(), expected, 1e-5, 1e-5)
        np.testing.assert_allclose(reference, expected, 1e-5, 1e-5)


def test_files_hold_transformed_weights_alone(tmp_path: Path) -> None:
    """Each weight once, in one form: 16 numbers instead of 9."""
    executable = pyvm.compile(network())
    executable.save(tmp_path / "network.vmx")
    size, before = (tmp_path / "network.vmx").stat().st_size, 2 * 32 * 32 * 9 * 4
    assert before * 16 / 9 < size < before * 16 / 9 + 8192
    x = np.ones((1, 32, 15, 18), np.float32)
    results = [pyvm.VirtualMachine(e)["main"](x) for e in (executable, pyvm.load_executable(tmp_path / "network.vmx"))]
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    "shape",
    [(15, 2, 64, 32), (16, 1, 64, 32), (16, 3, 64, 32), (16, 2, 65, 32), (16, 2, 64, 16), (16, 2, 64), (64, 64, 3, 3)],
)
def test_forged_weights_are_refused(shape: tuple[int, ...]) -> None:
    """A file may hold a constant of any shape where the kernel expects its weights."""
    b = pyvm.ExecBuilder()
    with b.function("main", num_inputs=2):
        forged = b.convert_constant(np.ones(shape, np.float32))
        pads = b.convert_constant(pyvm.Shape((1, 1, 1, 1)))
        args = [b.r(0), forged, b.void_arg(), pads, 1, 0, b.convert_constant(0.0), b.convert_constant(0.0)]
        b.emit_call("kernel.conv_winograd", [*args, b.void_arg(), b.r(1)])
        b.emit_ret(b.r(1))
    vm = pyvm.VirtualMachine(pyvm.VMExecutable.from_bytes(b.get().to_bytes()))
    with pytest.raises(errors.ShapeMismatchError, match="conv_winograd"):
        vm["main"](np.ones((1, 64, 8, 8), np.float32), pyvm.tensor(np.zeros((1, 64, 8, 8), np.float32)))


@pytest.mark.parametrize(("attribute", "size"), [("strides", 4), ("dilations", 6)])
def test_transformed_weights_take_windows_without_gaps(attribute: str, size: int) -> None:
    text = pack_weights(conv_module((1, 16, 8, 8), (32, 16, 3, 3), pads=(1, 1, 1, 1))).script()
    assert 'layout="winograd"' in text
    forged = text.replace(f"{attribute}=(1, 1)", f"{attribute}=(2, 2)")
    forged = forged.replace("(1, 32, 8, 8)", f"(1, 32, {size}, {size})")
    with pytest.raises(errors.ParseError, match="transformed weights with strides"):
        parse(forged)


def test_weights_that_are_not_finite_stay() -> None:
    w = weights(32, 16, 3, 3)
    w[3, 4, 1, 1] = np.inf
    module = build(lambda bb, x: bb.emit(op.conv(x, w, pads=(1, 1, 1, 1))), x=tensor(1, 16, 8, 8))
    result = np.asarray(pyvm.VirtualMachine(pyvm.compile(module))["main"](np.ones((1, 16, 8, 8), np.float32)))
    assert np.isinf(result[0, 3]).all() and np.isfinite(np.delete(result, 3, axis=1)).all()
