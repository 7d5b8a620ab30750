"""The demo's data, its training script and its network, against numpy's own gradients and ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from pyvm import demo
from pyvm.demo import train


def test_data() -> None:
    training, held_out = demo.load_digits()
    assert training.images.shape == (1297, 1, 8, 8) and held_out.images.shape == (500, 1, 8, 8)
    for part in (training, held_out):
        assert part.images.dtype == np.float32 and part.images.min() == 0 and part.images.max() == 1
        assert set(part.labels) == set(range(10)) and len(part.labels) == len(part.images)


def test_ascii_picture() -> None:
    image = np.zeros((8, 8))
    image[0, 1], image[7, 7] = 1.0, 0.55
    lines = demo.ascii_picture(image).split("\n")
    assert len(lines) == 8
    assert lines[0] == "  @@" and lines[7].strip() == "++" and not lines[3]


@pytest.mark.parametrize("name", ["conv1.w", "conv1.b", "conv2.w", "conv2.b", "fc.w", "fc.b"])
def test_gradients(name: str) -> None:
    """Backpropagation agrees with central differences in float64."""
    rng = np.random.default_rng(5)
    params = {key: value.astype(np.float64) for key, value in train.init_params(rng).items()}
    images = rng.uniform(0, 1, (3, 1, 8, 8))
    labels = np.array([1, 7, 4])
    _, grads = train.loss_and_grads(params, images, labels)
    for flat in rng.choice(params[name].size, 5, replace=False):
        index = np.unravel_index(flat, params[name].shape)
        center, step, losses = params[name][index], 1e-6, []
        for moved in (center + step, center - step):
            params[name][index] = moved
            losses.append(train.loss_and_grads(params, images, labels)[0])
        params[name][index] = center
        assert grads[name][index] == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-4, abs=1e-8)


def test_training_learns_and_repeats() -> None:
    training, _ = demo.load_digits()
    some = demo.Digits(training.images[:256], training.labels[:256])
    params = train.train(some, epochs=8, seed=1)
    assert train.accuracy(params, some) > 0.8
    again = train.train(some, epochs=8, seed=1)
    assert all(np.array_equal(params[name], again[name]) for name in params)


def test_shipped_weights() -> None:
    assert train.accuracy(demo.load_weights(), demo.load_digits()[1]) >= 0.97


@pytest.fixture(scope="module")
def vm():  # type: ignore[no-untyped-def]
    import pyvm
    from pyvm.demo.model import build_module

    return pyvm.VirtualMachine(pyvm.compile(build_module()))


@pytest.mark.parametrize("n", [1, 2, 33, 500])
def test_machine_agrees_with_numpy(vm, n: int) -> None:  # type: ignore[no-untyped-def]
    images = demo.load_digits()[1].images[:n]
    expected = train.forward(demo.load_weights(), images)
    np.testing.assert_allclose(np.asarray(vm["main"](images)), expected, rtol=1e-4, atol=1e-6)


def test_machine_agrees_with_onnx_runtime(vm) -> None:  # type: ignore[no-untyped-def]
    runtime = pytest.importorskip("onnxruntime")
    from tests.digits_onnx import digits_onnx

    images = demo.load_digits()[1].images
    session = runtime.InferenceSession(digits_onnx().SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"image": images})
    np.testing.assert_allclose(np.asarray(vm["main"](images)), expected, rtol=1e-4, atol=1e-6)


def test_compiled_from_onnx_gives_the_same(tmp_path, vm) -> None:  # type: ignore[no-untyped-def]
    import pyvm
    from tests.digits_onnx import digits_onnx

    path = tmp_path / "digits.onnx"
    path.write_bytes(digits_onnx().SerializeToString())
    images = demo.load_digits()[1].images[:9]
    result = pyvm.VirtualMachine(pyvm.compile(str(path)))["main"](images)
    np.testing.assert_allclose(np.asarray(result), np.asarray(vm["main"](images)), rtol=1e-5, atol=1e-7)
