"""The network of the demo as an IR module, written with BlockBuilder and the trained weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pyvm import op
from pyvm.demo import load_weights
from pyvm.ir import BlockBuilder, Constant, IRModule, SymVar, TensorStructInfo, Var


def build_module(weights: Mapping[str, np.ndarray] | None = None) -> IRModule:
    """`main(image: (n, 1, 8, 8) float32) -> (n, 10) float32`, the probabilities of the ten digits, for any n.

    Parameters
    ----------
    weights : mapping, optional
        As `load_weights` returns them, which is the default. Not modified.
    """
    constants = {name: Constant(value) for name, value in (weights or load_weights()).items()}
    image = Var("image", TensorStructInfo((SymVar("n"), 1, 8, 8), "float32"))
    bb = BlockBuilder()
    with bb.function("main", params=[image]):
        with bb.dataflow():
            x = image
            for layer in ("conv1", "conv2"):
                with bb.source(layer):
                    weight, bias = constants[f"{layer}.w"], constants[f"{layer}.b"]
                    x = bb.emit(op.conv(x, weight, bias, strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1)))
                    x = bb.emit(op.relu(x))
                    x = bb.emit(op.max_pool(x, (2, 2), strides=(2, 2), pads=(0, 0, 0, 0)))
            with bb.source("fc"):
                x = bb.emit(op.flatten(x, 1))
                x = bb.emit(op.gemm(x, constants["fc.w"], constants["fc.b"], trans_b=True))
            with bb.source("softmax"):
                probabilities = bb.emit_output(op.softmax(x, axis=-1), "probabilities")
        bb.emit_func_output(probabilities)
    return bb.get()
