"""Compares an executable with ONNX Runtime on given inputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

import pyvm

RTOL, ATOL = 1e-3, 1e-5


def assert_matches_runtime(executable: pyvm.VMExecutable, model: bytes | str, feeds: Mapping[str, np.ndarray]) -> None:
    """The outputs of the virtual machine equal those of ONNX Runtime, within the tolerances of the project.

    Parameters
    ----------
    executable : VMExecutable
    model : bytes or path
        The ONNX model that it was compiled from.
    feeds : mapping
        Inputs by name, in the order of the model's inputs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    expected = session.run(None, dict(feeds))
    result = pyvm.VirtualMachine(executable)["main"](*feeds.values())
    outputs = result if isinstance(result, tuple) else (result,)
    assert len(outputs) == len(expected)
    for output, reference in zip(outputs, expected, strict=True):
        array = output.numpy()
        assert array.dtype == reference.dtype
        assert np.ptp(reference) > 0, "a constant output would hide errors"
        np.testing.assert_allclose(array, reference, rtol=RTOL, atol=ATOL)
