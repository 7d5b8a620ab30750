"""The nine classic networks that ship inside the onnx package, with seeded random weights.

The files there fill every weight with a constant, which would hide most errors. Weights get He's variance, so that
activations keep their size through the layers, and the statistics of batch normalizations get plausible values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
from onnx import helper, numpy_helper

NAMES = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
_BATCH_NORM_ROLES = {1: "scale", 2: "bias", 3: "mean", 4: "var"}


def light_model(name: str, seed: int = 0) -> onnx.ModelProto:
    """The network called `name` with random weights; equal seeds give equal models."""
    folder = Path(onnx.backend.test.__file__).parent / "data" / "light"
    model = onnx.load(folder / f"light_{name}.onnx")
    graph = model.graph
    rng = np.random.default_rng(seed)
    vectors = (tensor for tensor in graph.initializer if len(tensor.dims) == 1)
    shapes = {tensor.name: tuple(numpy_helper.to_array(tensor)) for tensor in vectors}
    roles = {
        node.input[i]: role
        for node in graph.node
        if node.op_type == "BatchNormalization"
        for i, role in _BATCH_NORM_ROLES.items()
    }
    nodes, weights = [], []
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in shapes:
            values = _random(rng, shapes[node.input[0]], roles.get(node.output[0]))
            weights.append(numpy_helper.from_array(values, node.output[0]))
        else:
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used] + weights
    constants = {tensor.name for tensor in graph.initializer} | {tensor.name for tensor in weights}
    inputs = [value for value in graph.input if value.name not in constants]
    seeded = helper.make_graph(nodes, graph.name, inputs, graph.output, initializers)
    return helper.make_model(seeded, opset_imports=model.opset_import, ir_version=8)


def _random(rng: np.random.Generator, shape: tuple[int, ...], role: str | None) -> np.ndarray:
    if role == "var":
        values = rng.uniform(0.8, 1.2, shape)
    elif role == "scale":
        values = rng.uniform(0.3, 0.7, shape)
    elif len(shape) > 1:
        values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    else:
        values = rng.standard_normal(shape) * 0.05
    return values.astype(np.float32)
