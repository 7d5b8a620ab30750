"""Latency of models so small that the runtime is what is measured, next to ONNX Runtime, at one and two threads.

The digits demo is between these and the real models: its 175,000 multiply-adds alone take 3 us of one core that does
nothing else, a fifth of ONNX Runtime's time. It has the budget of the real models.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tests.bench.models import arrays, ort_session
from tests.bench.report import Row, Section, Target, cost
from tests.bench.timing import Call, alternate, pinned

NUMBER = 500  # calls of one timed loop
SETTLE_S = 0.03  # idle workers may spin for a while and take the processor from the other side


def run(quick: bool) -> Section:
    """One row per model and number of threads; none, with a remark, without onnx and ONNX Runtime."""
    section = Section("tiny", "latency of tiny models, numpy -> numpy, us (minimum over loops; medians in the note)")
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        section.remarks.append(f"skipped: {error}")
        return section
    import pyvm

    for name, make, budget in (
        ("1 operator, 16 floats", _one_operator, 0.2),
        ("MLP 16-32-32-8, 1 row", _mlp, 0.2),
        ("digits demo, 1 image", _digits, 1.0),
    ):
        model, x = make()
        function = pyvm.VirtualMachine(pyvm.compile(model))["main"]
        for threads in (1, 2):
            if threads > len(os.sched_getaffinity(0)):
                break
            with pinned(threads):
                pyvm.set_num_threads(threads)
                session = ort_session(onnxruntime, model.SerializeToString(), threads)
                ours = partial(_call, function, x)
                theirs = partial(session.run, None, {session.get_inputs()[0].name: x})
                np.testing.assert_allclose(ours()[0], theirs()[0], rtol=1e-4, atol=1e-5)
                calls = {"pyvm": _loop(ours), "ONNX Runtime": _loop(theirs)}
                times = alternate(calls, 5 if quick else 40, 1, SETTLE_S if threads > 1 else 0.0)
                del session, theirs
            section.rows.append(_row(f"{name}, {threads} thread{'s' if threads > 1 else ''}", budget, times))
    pyvm.set_num_threads(1)
    return section


def _call(function: Callable[[np.ndarray], Any], x: np.ndarray) -> list[np.ndarray]:
    return arrays(function(x))


def _loop(call: Callable[[], Any]) -> Call:
    def calls() -> None:
        for _ in range(NUMBER):
            call()

    return calls


def _row(name: str, budget: float, times: dict[str, np.ndarray]) -> Row:
    best = {side: values.min() / NUMBER / 1e3 for side, values in times.items()}
    middle = {side: float(np.median(values)) / NUMBER / 1e3 for side, values in times.items()}
    ours, theirs = middle["pyvm"], middle["ONNX Runtime"]
    return cost(
        name,
        "us",
        best["pyvm"],
        "ONNX Runtime",
        best["ONNX Runtime"],
        Target(budget, at_least=False),
        note=f"median {ours:.4g} / {theirs:.4g} = {ours / theirs:.3f}",
        details={"median_us": middle},
    )


def _model(nodes: list[Any], x: tuple[int, ...], y: tuple[int, ...], weights: dict[str, np.ndarray]) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _one_operator() -> tuple[Any, np.ndarray]:
    from onnx import helper

    return _model([helper.make_node("Add", ["x", "x"], ["y"])], (16,), (16,), {}), np.arange(16, dtype=np.float32)


def _mlp() -> tuple[Any, np.ndarray]:
    from onnx import helper

    rng = np.random.default_rng(0)
    sizes = (16, 32, 32, 8)
    nodes, value = [], "x"
    weights: dict[str, np.ndarray] = {}
    for i, (k, n) in enumerate(zip(sizes, sizes[1:], strict=False)):
        last = i == len(sizes) - 2
        weights[f"w{i}"] = rng.standard_normal((k, n), dtype=np.float32) / 4
        weights[f"b{i}"] = rng.standard_normal(n, dtype=np.float32)
        nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], ["y" if last else f"h{i}"]))
        value = f"h{i}"
        if not last:
            nodes.append(helper.make_node("Relu", [value], [f"r{i}"]))
            value = f"r{i}"
    return _model(nodes, (1, sizes[0]), (1, sizes[-1]), weights), rng.standard_normal((1, sizes[0]), dtype=np.float32)


def _digits() -> tuple[Any, np.ndarray]:
    from tests.digits_onnx import digits_onnx

    return digits_onnx(), np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)
