"""The demo's network as an ONNX model, written node by node: an independent description of the same thing."""

from __future__ import annotations

from onnx import ModelProto, TensorProto, helper, numpy_helper

from pyvm.demo import load_weights


def digits_onnx() -> ModelProto:
    """`image` (n, 1, 8, 8) float32 to `probabilities` (n, 10)."""
    nodes = []
    x = "image"
    for layer in ("conv1", "conv2"):
        nodes += [
            helper.make_node(
                "Conv", [x, f"{layer}.w", f"{layer}.b"], [f"{layer}.out"], name=layer,
                kernel_shape=[3, 3], pads=[1, 1, 1, 1],
            ),
            helper.make_node("Relu", [f"{layer}.out"], [f"{layer}.relu"], name=f"{layer}_relu"),
            helper.make_node(
                "MaxPool", [f"{layer}.relu"], [f"{layer}.pool"], name=f"{layer}_pool",
                kernel_shape=[2, 2], strides=[2, 2],
            ),
        ]  # fmt: skip
        x = f"{layer}.pool"
    nodes += [
        helper.make_node("Flatten", [x], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "fc.w", "fc.b"], ["scores"], name="fc", transB=1),
        helper.make_node("Softmax", ["scores"], ["probabilities"], name="softmax", axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(value, name) for name, value in load_weights().items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
