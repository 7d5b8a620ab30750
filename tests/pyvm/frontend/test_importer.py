"""The graph walk: names, symbols, constants, functions, external data, and every way in which a model can be wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import pyvm
from pyvm.errors import FrontendError, UnsupportedOpError
from pyvm.frontend.onnx import from_onnx, supported_ops
from pyvm.ir import Constant, SymVar, TensorStructInfo, TupleStructInfo
from tests.ir_evaluator import run_module
from tests.pyvm.frontend.checking import check, model

RELU = "g (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }"


def test_names_of_inputs_and_outputs_survive() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["in/put:0"], ["out.put"]),
            helper.make_node("Neg", ["out.put"], ["min"]),
        ],
        "g",
        [helper.make_tensor_value_info("in/put:0", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("out.put", "min")],
    )
    main = from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))["main"]
    assert [param.name for param in main.params] == ["in/put:0"]
    assert main.attrs["output_names"] == ("out.put", "min")
    assert isinstance(main.ret_struct_info, TupleStructInfo) and len(main.ret_struct_info.fields) == 2


def test_bindings_carry_their_node() -> None:
    proto = model("g (float[2] x) => (float[2] y) { [act] t = Relu(x)\n y = Neg(t) }")
    sources = {binding.source for binding in from_onnx(proto)["main"].body.bindings()}
    assert {"act (Relu-17)", "y (Neg-17)"} <= sources


def test_initializers_listed_as_inputs_are_constants() -> None:
    proto = model("g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }", initializers={"w": np.ones(2, "f4")})
    module = from_onnx(proto)
    assert [param.name for param in module["main"].params] == ["x"]
    np.testing.assert_array_equal(run_module(module, {"x": np.zeros(2, "f4")})[0], [1, 1])


# --- dimensions


def _shape(proto: onnx.ModelProto, shape_dict: dict[str, object] | None = None) -> tuple[object, ...]:
    info = from_onnx(proto, shape_dict)["main"].params[0].struct_info  # type: ignore[arg-type]
    assert isinstance(info, TensorStructInfo) and info.shape is not None
    return info.shape


def test_named_dimensions_are_shared_symbols() -> None:
    proto = model("g (float[N, M, N] x) => (float[N, M, N] y) { y = Relu(x) }")
    assert _shape(proto) == (SymVar("N"), SymVar("M"), SymVar("N"))


def test_unnamed_dimensions_are_distinct_symbols() -> None:
    proto = model("g (float[N, M, 2] x) => (float[N, M, 2] y) { y = Relu(x) }")
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    dims[0].Clear()
    dims[1].dim_param = "?"
    first, second, third = _shape(proto)
    assert isinstance(first, SymVar) and isinstance(second, SymVar) and first != second and third == 2


def test_dimension_names_need_not_be_identifiers() -> None:
    proto = model("g (float[N, M] x) => (float[N, M] y) { y = Relu(x) }")
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_param, dims[1].dim_param = "batch.0 size", "batch_0_size"
    first, second = _shape(proto)
    assert first != second


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"x": (4, 3)}, (4, 3)), ({"N": 5}, (5, 3)), ({"x": (None, 3)}, (SymVar("N"), 3)), ({}, (SymVar("N"), 3))],
)
def test_shape_dict(given: dict[str, object], expected: tuple[object, ...]) -> None:
    assert _shape(model(RELU), given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"z": (1, 3)}, "shape_dict names 'z'; the inputs are ['x'], the symbolic dimensions ['N']"),
        ({"x": (1, 4)}, "shape_dict['x'] is (1, 4), dimension 1 of the input is 3"),
        ({"x": (1,)}, "shape_dict['x'] is (1,), the input has 2 dimensions"),
        ({"x": 3}, "shape_dict['x'] must be a shape, got 3"),
        ({"N": -1}, "shape_dict['N']: -1 is not a dimension"),
        ({"N": "many"}, "shape_dict['N']: 'many' is not a dimension"),
    ],
)
def test_shape_dict_errors(given: dict[str, object], message: str) -> None:
    with pytest.raises(FrontendError, match=re.escape(message)):
        _shape(model(RELU), given)


def test_input_without_a_shape_needs_one() -> None:
    proto = model(RELU)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(FrontendError, match="input 'x' has no shape in the model"):
        from_onnx(proto)
    assert _shape(proto, {"x": (2, 3)}) == (2, 3)


# --- unsupported operators


def test_all_unsupported_operators_are_listed_at_once() -> None:
    proto = model("""g (float[2] x) => (float[2] y) {
        [first] a = NonMaxSuppressionish(x)
        [second] b = custom.domain.Thing(a)
        [third] c = NonMaxSuppressionish(b)
        y = Relu(c)
    }""")
    with pytest.raises(UnsupportedOpError) as caught:
        from_onnx(proto)
    text = str(caught.value)
    assert text.startswith("3 nodes use 2 unsupported operators: ")
    assert "NonMaxSuppressionish (opset 17): first, third" in text
    assert "custom.domain.Thing (opset 1): second" in text


def test_supported_ops_is_the_registry() -> None:
    names = supported_ops()
    assert {"Conv", "Gemm", "LayerNormalization", "Where"} <= set(names) and len(names) > 130


def test_opset_decides_the_converter() -> None:
    with pytest.raises(UnsupportedOpError, match=r"ConstantOfShape \(opset 8\)"):
        from_onnx(model("g (int64[1] n) => (float[M] y) { y = ConstantOfShape(n) }", opset=8))


# --- functions


def test_functions_of_the_model_are_expanded() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        g (float[N] x) => (float[N] y) { y = mine.twice_leaky<slope = 0.5>(x) }
        <domain: "mine", opset_import: ["" : 17, "mine" : 1]>
        twice_leaky <slope> (x) => (y) { t = mine.leaky<slope : float = @slope>(x)  y = mine.leaky(t) }
        <domain: "mine", opset_import: ["" : 17]>
        leaky <slope: float = 0.25> (x) => (y) { y = LeakyRelu<alpha : float = @slope>(x) }
    """)
    module = from_onnx(proto)
    np.testing.assert_allclose(run_module(module, {"x": np.array([-8.0, 2.0], "f4")})[0], [-1.0, 2.0])


def test_unsupported_operators_inside_functions_are_listed() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        g (float[N] x) => (float[N] y) { [outer] y = mine.f(x) }
        <domain: "mine", opset_import: ["" : 17]>
        f (x) => (y) { [inner] y = Nowhere(x) }
    """)
    with pytest.raises(UnsupportedOpError, match=r"Nowhere \(opset 17\): outer/inner"):
        from_onnx(proto)


def test_recursive_functions_are_refused() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        g (float[N] x) => (float[N] y) { y = mine.f(x) }
        <domain: "mine", opset_import: ["" : 17, "mine" : 1]>
        f (x) => (y) { y = mine.f(x) }
    """)
    with pytest.raises(FrontendError, match="calls itself"):
        from_onnx(proto)


def test_operators_defined_by_a_body_are_expanded() -> None:
    proto = model("g (float[2, 3] x, int64[2] t) => (float l) { l = SoftmaxCrossEntropyLoss(x, t) }", opset=13)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3), dtype=np.float32), "t": np.array([2, 0])}
    check(proto, feeds)


# --- constants


@pytest.mark.parametrize("dtype", "f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 ?".split())
@pytest.mark.parametrize("raw", [True, False])
def test_initializers_of_every_type(dtype: str, raw: bool) -> None:
    values = np.array([[0, 1], [3, 1]]).astype(dtype)
    if raw:
        tensor = numpy_helper.from_array(values, "c")
    else:
        code = helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = helper.make_tensor("c", code, values.shape, values.reshape(-1).tolist())
    graph = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", tensor.data_type, [2, 2])],
        [tensor],
    )
    (result,) = run_module(from_onnx(helper.make_model(graph)), {})
    assert result.dtype == values.dtype
    np.testing.assert_array_equal(result, values)


def test_sparse_initializer() -> None:
    proto = model("g () => (float[2, 3] y) { y = Identity(s) }")
    sparse = proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.array([5.0, 7.0], "f4"), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([1, 5])))
    sparse.dims[:] = [2, 3]
    np.testing.assert_array_equal(run_module(from_onnx(proto), {})[0], [[0, 5, 0], [0, 0, 7]])


def test_constants_are_folded_while_importing() -> None:
    proto = model("g () => (float[2] y) { a = Constant<value_floats = [1.0, 4.0]>()  b = Sqrt(a)  y = Add(a, b) }")
    (binding,) = from_onnx(proto)["main"].body.bindings()
    assert isinstance(binding.value, Constant)
    np.testing.assert_array_equal(binding.value.data, [2, 6])


# --- external data


def _with_external_data(folder: Path, **fields: str) -> Path:
    proto = model("g (float[4] x) => (float[4] y) { y = Add(x, w) }")
    tensor = proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", **fields}.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_external_data(tmp_path: Path) -> None:
    values = np.arange(4, dtype=np.float32)
    (tmp_path / "weights.bin").write_bytes(b"12345678" + values.tobytes())
    path = _with_external_data(tmp_path, offset="8", length="16")
    np.testing.assert_array_equal(run_module(from_onnx(path), {"x": np.zeros(4, "f4")})[0], values)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"location": "../weights.bin"}, "is outside the model's folder"),
        ({"location": "/etc/hostname"}, "is outside the model's folder"),
        ({"location": "link/weights.bin"}, "is outside the model's folder"),
        ({"location": ""}, "is outside the model's folder"),
        ({"location": "."}, "is outside the model's folder"),
        ({"location": "missing.bin"}, "cannot read external data"),
        ({"length": "15"}, "needs 16 bytes, external data gives 15"),
        ({"offset": "8"}, "ends 8 bytes too early"),
        ({"offset": "-8"}, "needs 16 bytes"),
        ({"offset": "many"}, "must be numbers"),
    ],
)
def test_external_data_errors(tmp_path: Path, fields: dict[str, str], message: str) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "weights.bin").write_bytes(bytes(16))
    (inside / "link").symlink_to(tmp_path)
    with pytest.raises(FrontendError, match=message):
        from_onnx(_with_external_data(inside, **fields))


def test_external_data_needs_a_path(tmp_path: Path) -> None:
    data = _with_external_data(tmp_path).read_bytes()
    with pytest.raises(FrontendError, match="pass the path of the model, not its bytes"):
        from_onnx(data)


# --- malformed models


def _no_opset(proto: onnx.ModelProto) -> None:
    del proto.opset_import[:]


def _no_outputs(proto: onnx.ModelProto) -> None:
    del proto.graph.output[:]


def _unknown_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "nothing"


def _unknown_input(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "nothing"


def _no_input(proto: onnx.ModelProto) -> None:
    del proto.graph.node[0].input[:]


def _too_many_inputs(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input.extend(["x", "x"])


def _computed_twice(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(proto.graph.node[0])


def _duplicate_input(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(proto.graph.input[0])


def _string_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


def _unknown_type(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = 99


def _sequence_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(proto.graph.input[0].type))


def _untyped_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].ClearField("type")


def _unknown_attribute(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].attribute.append(helper.make_attribute("speed", 3))


def _short_data(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[4], raw_data=b"123")


def _many_dimensions(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1] * 65, raw_data=bytes(4))


def _short_typed_data(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[4], float_data=[1.0])


def _negative_dim(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[-4])


def _giant(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**62


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_opset, "does not say which opset it uses"),
        (_no_outputs, "has no outputs"),
        (_unknown_output, "value 'nothing' is used before it is computed"),
        (_unknown_input, "value 'nothing' is used before it is computed"),
        (_no_input, "malformed node"),
        (_too_many_inputs, "malformed node"),
        (_computed_twice, "value 'y' is computed twice"),
        (_duplicate_input, "two inputs 'x'"),
        (_string_input, "input 'x' has element type STRING"),
        (_unknown_type, "input 'x' has element type number 99"),
        (_sequence_input, r"input 'x' is not a tensor \(sequence\)"),
        (_untyped_input, r"input 'x' is not a tensor \(no type\)"),
        (_unknown_attribute, "malformed node: .*speed"),
        (_short_data, "does not fit in 3 bytes"),
        (_many_dimensions, "tensor 'w' has 65 dimensions, at most 64"),
        (_short_typed_data, "tensor 'w'"),
        (_giant, "too big for any memory"),
        (_negative_dim, r"tensor 'w' has shape \(-4,\)"),
    ],
)
def test_malformed_models(damage: Callable[[onnx.ModelProto], None], message: str) -> None:
    proto = model(RELU)
    damage(proto)
    with pytest.raises(FrontendError, match=message):
        from_onnx(proto)


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x00" * 64, b"\xff" * 7])
def test_not_a_model(data: bytes) -> None:
    with pytest.raises(FrontendError, match="not an ONNX model"):
        from_onnx(data)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FrontendError, match="cannot read .*nothing.onnx: No such file"):
        from_onnx(tmp_path / "nothing.onnx")


def test_damaged_files_raise_frontend_errors_only() -> None:
    """Every truncation and many flipped bytes of a model either import or raise FrontendError."""
    proto = model(
        "g (float[N, 4] x) => (float[N, 2] y) { a = Reshape(x, s)  b, c = Split<axis = 1>(a)  y = Add(b, c) }",
        initializers={"s": np.array([-1, 4])},
    )
    data = proto.SerializeToString()
    rng = np.random.default_rng(0)
    damaged = [data[:n] for n in range(0, len(data), 3)]
    for _ in range(400):
        changed = bytearray(data)
        changed[rng.integers(len(data))] = rng.integers(256)
        damaged.append(bytes(changed))
    for variant in damaged:
        try:
            from_onnx(variant)
        except FrontendError:
            pass


def test_errors_of_operators_name_the_node() -> None:
    proto = model("g (float[2, 3] x, float[4, 5] w) => (float[2, 5] y) { [product] y = MatMul(x, w) }")
    with pytest.raises(FrontendError, match=r"^product \(MatMul-17\): matmul: .*3.*4"):
        from_onnx(proto)


@pytest.mark.parametrize("nodes", ["y = Identity(x)", "y = Flatten(x)", "t = Flatten(x)  y = Unsqueeze(t, one)"])
def test_results_are_not_views_of_arguments(nodes: str) -> None:
    proto = model(f"g (float[N, 3] x) => (float[A] y) <int64[1] one = {{1}}> {{ {nodes} }}")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    main = pyvm.VirtualMachine(pyvm.compile(proto))["main"]
    x = np.ones((2, 3), np.float32)
    y = main(x).numpy()
    x[:] = 7
    assert (y == 1).all()
