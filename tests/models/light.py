"""The nine classic networks that ship inside the onnx package, with seeded random weights.

The files there fill every weight with a constant, which would hide most errors. Weights get He's variance, so that
activations keep their size through the layers, and the statistics of batch normalizations get plausible values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
from onnx import TensorProto, numpy_helper

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
    # In place: copies of half a gigabyte of weights (vgg19) take longer than all the rest.
    kept, constants = [], {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            kept.append(node)
            continue
        (output,) = node.output
        values = _random(rng, shapes[node.input[0]], roles.get(output))
        graph.initializer.add(name=output, data_type=TensorProto.FLOAT, dims=values.shape, raw_data=values.tobytes())
        constants.add(output)
    _replace(graph.node, kept)
    used = {name for node in kept for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    _replace(graph.input, [value for value in graph.input if value.name not in constants])
    model.ir_version = 8  # initializers need not be inputs
    return model


def _replace(field: Any, items: list[Any]) -> None:
    """Keeps only `items` of a repeated field of messages."""
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)


def _random(rng: np.random.Generator, shape: tuple[int, ...], role: str | None) -> np.ndarray:
    if role == "var":
        values = rng.uniform(0.8, 1.2, shape)
    elif role == "scale":
        values = rng.uniform(0.3, 0.7, shape)
    elif len(shape) > 1:
        # A period that is a prime number keeps rows of any length different, and half a gigabyte cheap.
        period = rng.standard_normal(1_000_003, dtype=np.float32) * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        values = np.resize(period, shape)
    else:
        values = rng.standard_normal(shape) * 0.05
    return values.astype(np.float32, copy=False)
