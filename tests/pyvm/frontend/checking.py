"""Models written as text, and their comparison: numpy references and virtual machine against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.parser

import pyvm
from pyvm.frontend.onnx import from_onnx
from tests.ir_evaluator import run_module


def model(text: str, opset: int = 17, initializers: Mapping[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """A model from a graph in ONNX's text form, with more initializers given as arrays."""
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    proto = onnx.parser.parse_model(f"{header}\n{text}")
    for name, array in (initializers or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def runtime_outputs(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
    """What ONNX Runtime says."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def check(
    proto: onnx.ModelProto,
    *all_feeds: Mapping[str, np.ndarray],
    expected: Sequence[np.ndarray] | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """One import and one executable give the right outputs for every set of inputs.

    Right is what ONNX Runtime computes, unless `expected` says it (for opsets older than the runtime's).
    """
    module = from_onnx(proto)
    main = pyvm.VirtualMachine(pyvm.compile(proto))["main"]
    for feeds in all_feeds:
        references = runtime_outputs(proto, feeds) if expected is None else expected
        with np.errstate(all="ignore"):
            evaluated = run_module(module, feeds)
        result = main(*feeds.values())
        computed = [value.numpy() for value in (result if isinstance(result, tuple) else (result,))]
        for outputs in (evaluated, computed):
            assert len(outputs) == len(references)
            for output, reference in zip(outputs, references, strict=True):
                assert (output.dtype, output.shape) == (reference.dtype, reference.shape)
                np.testing.assert_allclose(output, reference, rtol=rtol, atol=atol)
