"""`kernel.resize` against the ONNX reference evaluator and ONNX Runtime."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vmcore import errors
from vmcore.kernels.direct import call_kernel

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(6)
MODES = ("nearest", "linear", "cubic")
COORDS = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric")
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def oracle(x: np.ndarray, mode: int, coord: int, nearest: int, a: float, scales: list[float]) -> np.ndarray:
    node = onnx.helper.make_node(
        "Resize",
        ["x", "", "scales"],
        ["y"],
        mode=MODES[mode],
        coordinate_transformation_mode=COORDS[coord],
        nearest_mode=NEAREST[nearest],
        cubic_coeff_a=a,
    )
    kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = onnx.helper.make_graph(
        [node],
        "resize",
        [onnx.helper.make_tensor_value_info("x", kind, x.shape)],
        [onnx.helper.make_tensor_value_info("y", kind, None)],
        [onnx.numpy_helper.from_array(np.array(scales, np.float32), "scales")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize("scales", [[1, 1, 2, 2], [1, 1, 0.61, 0.5], [1, 1, 2.5, 0.7], [1, 1, 1, 3]])
@pytest.mark.parametrize(("mode", "coord"), list(itertools.product(range(3), range(5))))
def test_two_dimensions(mode: int, coord: int, scales: list[float]) -> None:
    x = RNG.standard_normal((1, 2, 7, 9)).astype(np.float32)
    scales = np.array(scales, np.float32).tolist()
    for nearest in range(4) if mode == 0 else (0,):
        expected = oracle(x, mode, coord, nearest, -0.5, scales)
        out = np.empty_like(expected)
        call_kernel("resize", x, mode, coord, nearest, -0.5, np.array(scales), out)
        np.testing.assert_allclose(out, expected, 1e-4, 1e-5)


@pytest.mark.parametrize("dtype", ["float64", "float16", "uint8", "int32"])
def test_element_types(dtype: str) -> None:
    x = RNG.integers(0, 100, (2, 3, 4, 5)).astype(dtype)
    out = np.empty((2, 3, 8, 10), dtype)
    call_kernel("resize", x, 0, 1, 2, 0.0, None, out)
    np.testing.assert_array_equal(out, x.repeat(2, 2).repeat(2, 3))
    call_kernel("resize", x, 1, 1, 0, 0.0, None, out)
    np.testing.assert_array_equal(out[:, :, ::2, ::2], x)
    wide = np.empty(out.shape, np.float64)
    call_kernel("resize", x.astype(np.float64), 1, 1, 0, 0.0, None, wide)
    np.testing.assert_allclose(out.astype(np.float64), wide.astype(dtype), 1e-2)


def test_ranks_and_refusals() -> None:
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    out = np.empty((1, 12), np.float32)
    call_kernel("resize", x, 1, 2, 0, 0.0, None, out)
    np.testing.assert_allclose(out[0], np.interp(np.linspace(0, 3, 12), np.arange(4), x[0]), 1e-5, 1e-6)
    call_kernel("resize", x, 2, 0, 0, -0.75, np.ones(2), y := np.empty_like(x))
    np.testing.assert_array_equal(y, x)
    call_kernel("resize", np.empty((0, 4), np.float32), 1, 0, 0, 0.0, None, np.empty((0, 8), np.float32))
    refused: list[tuple[type[Exception], tuple[object, ...]]] = [
        (errors.ShapeMismatchError, (np.empty((0, 4), np.float32), 0, 0, 0, 0.0, None, out)),
        (errors.ShapeMismatchError, (x, 0, 0, 0, 0.0, np.ones(3), out)),
        (errors.ArgumentValueError, (x, 0, 0, 0, 0.0, np.array([0.0, 1.0]), out)),
        (errors.ArgumentValueError, (x, 0, 0, 0, 0.0, np.array([np.nan, 1.0]), out)),
        (errors.DTypeMismatchError, (x, 0, 0, 0, 0.0, np.ones(2, np.float32), out)),
        (errors.ArgumentValueError, (x, 3, 0, 0, 0.0, None, out)),
        (errors.ArgumentValueError, (x, 0, 0, 0, 0.0, None, x)),
    ]
    for error, args in refused:
        with pytest.raises(error):
            call_kernel("resize", *args)
