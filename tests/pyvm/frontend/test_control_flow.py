"""If, Loop, Scan and the recurrent layers, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import pyvm
from pyvm.errors import FrontendError, ShapeMismatchError
from pyvm.frontend.onnx import from_onnx
from pyvm.ir import check_well_formed
from tests.pyvm.ir.test_parser import assert_round_trip, assert_round_trips_after_every_pass

ort = pytest.importorskip("onnxruntime")
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def model(nodes: list[onnx.NodeProto], inputs: list, outputs: list, opset: int = 16) -> onnx.ModelProto:
    """A model from nodes and (name, type, shape) triples."""
    values = [[helper.make_tensor_value_info(*value) for value in group] for group in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def body(nodes: list[onnx.NodeProto], inputs: list, outputs: list) -> onnx.GraphProto:
    """A subgraph."""
    values = [[helper.make_tensor_value_info(*value) for value in group] for group in (inputs, outputs)]
    return helper.make_graph(nodes, "body", *values)


def check(proto: onnx.ModelProto, *feeds: dict[str, np.ndarray]) -> None:
    module = from_onnx(proto)
    check_well_formed(module)
    assert_round_trip(module)
    assert_round_trips_after_every_pass(module)
    main = pyvm.VirtualMachine(pyvm.compile(proto, check=True))["main"]
    session = ort.InferenceSession(proto.SerializeToString())
    for feed in feeds:
        result = main(**feed)
        ours = result if isinstance(result, tuple) else (result,)
        for got, expected in zip(ours, session.run(None, feed), strict=True):
            np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)


def rows(n: int, columns: int = 3) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, columns)).astype(np.float32)


def test_if_reads_outer_values_and_results_differ_in_shape() -> None:
    then = body([helper.make_node("Neg", ["y"], ["t"])], [], [("t", FLOAT, None)])
    other = body([helper.make_node("Concat", ["y", "x"], ["e"], axis=0)], [], [("e", FLOAT, None)])
    proto = model(
        [
            helper.make_node("Relu", ["x"], ["y"]),
            helper.make_node("If", ["c"], ["z"], then_branch=then, else_branch=other),
            helper.make_node("Exp", ["z"], ["out"]),
        ],
        [("x", FLOAT, ["n", 3]), ("c", BOOL, [])],
        [("out", FLOAT, None)],
    )
    check(proto, *({"x": rows(n), "c": np.array(c)} for n in (0, 1, 7) for c in (False, True)))


def test_results_of_different_rank_go_on_separately() -> None:
    then = body([helper.make_node("ReduceSum", ["x", "axis"], ["t"], keepdims=0)], [], [("t", FLOAT, None)])
    other = body([helper.make_node("Identity", ["x"], ["e"])], [], [("e", FLOAT, None)])
    proto = model(
        [
            helper.make_node("Constant", [], ["axis"], value_ints=[0]),
            helper.make_node("If", ["c"], ["z"], then_branch=then, else_branch=other),
            helper.make_node("Shape", ["z"], ["s"]),
            helper.make_node("Size", ["s"], ["rank"]),
            helper.make_node("Mul", ["z", "x"], ["out"]),
        ],
        [("x", FLOAT, ["n", 3]), ("c", BOOL, [])],
        [("out", FLOAT, None), ("rank", INT64, None)],
    )
    check(proto, *({"x": rows(2), "c": np.array(c)} for c in (False, True)))


def test_a_branch_that_does_not_fit_the_shapes_is_refused_when_taken() -> None:
    then = body([helper.make_node("MatMul", ["x", "x"], ["t"])], [], [("t", FLOAT, None)])
    other = body([helper.make_node("Neg", ["x"], ["e"])], [], [("e", FLOAT, None)])
    proto = model(
        [helper.make_node("If", ["c"], ["out"], name="choice", then_branch=then, else_branch=other)],
        [("x", FLOAT, [2, 3]), ("c", BOOL, [])],
        [("out", FLOAT, None)],
    )
    main = pyvm.VirtualMachine(pyvm.compile(proto, check=True))["main"]
    np.testing.assert_array_equal(main(rows(2), np.array(False)).numpy(), -rows(2))
    with pytest.raises(ShapeMismatchError, match=r"branch of choice \(If-16\) cannot be taken .*inner sizes 3 and 2"):
        main(rows(2), np.array(True))


def summing_loop(trip: str, cond: str) -> onnx.ModelProto:
    """s += x[0] * i until s[0] is large; every s is stacked; what is carried second grows."""
    inner = body(
        [
            helper.make_node("Cast", ["i"], ["f"], to=FLOAT),
            helper.make_node("Mul", ["x", "f"], ["p"]),
            helper.make_node("Add", ["s", "p"], ["s2"]),
            helper.make_node("Concat", ["grown", "s2"], ["grown2"], axis=0),
            helper.make_node("ReduceMax", ["s2"], ["m"], keepdims=0),
            helper.make_node("Less", ["m", "bound"], ["go"]),
            helper.make_node("Identity", ["s2"], ["row"]),
        ],
        [("i", INT64, []), ("c_in", BOOL, []), ("s", FLOAT, [3]), ("grown", FLOAT, ["g"])],
        [("go", BOOL, []), ("s2", FLOAT, [3]), ("grown2", FLOAT, ["h"]), ("row", FLOAT, [3])],
    )
    return model(
        [helper.make_node("Loop", [trip, cond, "x", "x"], ["s_out", "grown_out", "rows"], body=inner)],
        [("x", FLOAT, [3]), ("bound", FLOAT, []), ("m_max", INT64, []), ("c", BOOL, [])],
        [("s_out", FLOAT, [3]), ("grown_out", FLOAT, ["k"]), ("rows", FLOAT, ["t", 3])],
    )


def test_loop() -> None:
    x = np.array([0.5, 1, 2], np.float32)
    for trip, cond in (("m_max", "c"), ("m_max", ""), ("", "c")):
        feeds = [
            {"x": x, "bound": np.array(bound, np.float32), "m_max": np.array(n), "c": np.array(c)}
            for bound in (5.0, 100.0)
            for n in (0, 1, 6)
            for c in (True, False)
        ]
        check(summing_loop(trip, cond), *feeds)


def test_a_million_iterations() -> None:
    inner = body(
        [helper.make_node("Add", ["s", "one"], ["s2"]), helper.make_node("Identity", ["c_in"], ["go"])],
        [("i", INT64, []), ("c_in", BOOL, []), ("s", INT64, [])],
        [("go", BOOL, []), ("s2", INT64, [])],
    )
    proto = model(
        [
            helper.make_node("Constant", [], ["one"], value_int=1),
            helper.make_node("Loop", ["n", "", "start"], ["out"], body=inner),
        ],
        [("n", INT64, []), ("start", INT64, [])],
        [("out", INT64, [])],
    )
    main = pyvm.VirtualMachine(pyvm.compile(proto))["main"]
    assert int(main(np.array(1_000_000), np.array(5)).numpy()) == 1_000_005


@pytest.mark.parametrize("backwards", [0, 1])
@pytest.mark.parametrize("out_axis", [0, 1, -1])
def test_scan(backwards: int, out_axis: int) -> None:
    inner = body(
        [
            helper.make_node("Mul", ["s", "x_t"], ["p"]),
            helper.make_node("Add", ["p", "w"], ["s2"]),
            helper.make_node("Tanh", ["s2"], ["y"]),
        ],
        [("s", FLOAT, ["n"]), ("x_t", FLOAT, ["n"])],
        [("s2", FLOAT, ["n"]), ("y", FLOAT, ["n"])],
    )
    scan = helper.make_node(
        "Scan", ["start", "x"], ["last", "ys"], body=inner, num_scan_inputs=1, scan_input_axes=[1],
        scan_input_directions=[backwards], scan_output_axes=[out_axis], scan_output_directions=[backwards],
    )  # fmt: skip
    proto = model(
        [scan],
        [("start", FLOAT, ["n"]), ("x", FLOAT, ["n", "t"]), ("w", FLOAT, [1])],
        [("last", FLOAT, ["n"]), ("ys", FLOAT, None)],
    )
    feeds = [{"start": rows(1, n)[0], "x": rows(n, t), "w": np.ones(1, np.float32)} for n, t in ((1, 1), (3, 5))]
    check(proto, *feeds)


@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("length", [3, "t"])
@pytest.mark.parametrize("with_lengths", [False, True])
def test_recurrent_layers(op_type: str, direction: str, length: int | str, with_lengths: bool) -> None:
    rng = np.random.default_rng(0)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op_type]
    d, hidden, size = (2 if direction == "bidirectional" else 1), 4, 3
    shapes = {"w": (d, gates * hidden, size), "r": (d, gates * hidden, hidden), "b": (d, 2 * gates * hidden)}
    states = ["h", "c"] if op_type == "LSTM" else ["h"]
    nodes = [
        helper.make_node(
            "Constant", [], [name], value=onnx.numpy_helper.from_array(rng.normal(0, 0.5, shape).astype(np.float32))
        )
        for name, shape in shapes.items()
    ]
    inputs = ["x", "w", "r", "b", "lens" if with_lengths else "", *states]
    outputs = ["y", *(f"{state}_out" for state in states)]
    extra = {"linear_before_reset": 1} if op_type == "GRU" and direction == "forward" else {}
    nodes.append(helper.make_node(op_type, inputs, outputs, hidden_size=hidden, direction=direction, **extra))
    given = [("x", FLOAT, [length, "n", size]), *((state, FLOAT, [d, "n", hidden]) for state in states)]
    given += [("lens", TensorProto.INT32, ["n"])] if with_lengths else []
    proto = model(nodes, given, [(name, FLOAT, None) for name in outputs], opset=14)
    feeds = []
    for n in (1, 2, 7):
        feed = {"x": rng.normal(size=(3, n, size)).astype(np.float32)}
        feed |= {state: rng.normal(size=(d, n, hidden)).astype(np.float32) for state in states}
        feed |= {"lens": (np.arange(n) % 3 + 1).astype(np.int32)} if with_lengths else {}
        feeds.append(feed)
    check(proto, *feeds)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_branch_that_is_no_graph_is_refused(is_known: bool) -> None:
    """The checker looks at no node with subgraphs, since it does not know what names they see."""
    branch = body([helper.make_node("Identity", ["x"], ["t"])], [], [("t", FLOAT, [2])])
    node = helper.make_node("If", ["c"], ["out"], name="choice", then_branch=branch, else_branch=branch)
    for attribute in node.attribute:
        attribute.type = onnx.AttributeProto.GRAPHS
    nodes = [node]
    if is_known:
        nodes.insert(0, helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.array(True))))
    inputs = [("x", FLOAT, [2])] + ([] if is_known else [("c", BOOL, [])])
    with pytest.raises(FrontendError, match=r"choice \(If-16\): attribute '(then|else)_branch' is not a graph"):
        from_onnx(model(nodes, inputs, [("out", FLOAT, [2])]))


def test_errors_name_the_node() -> None:
    inner = body(
        [helper.make_node("Unsqueeze", ["s", "zero"], ["s2"]), helper.make_node("Identity", ["c_in"], ["go"])],
        [("i", INT64, []), ("c_in", BOOL, []), ("s", FLOAT, None)],
        [("go", BOOL, []), ("s2", FLOAT, None)],
    )
    nodes = [
        helper.make_node("Constant", [], ["zero"], value_ints=[0]),
        helper.make_node("Loop", ["n", "", "x"], ["out"], name="grow", body=inner),
    ]
    proto = model(nodes, [("n", INT64, []), ("x", FLOAT, [2])], [("out", FLOAT, None)])
    with pytest.raises(
        FrontendError, match=r"grow \(Loop-16\): a loop carries a tensor that is .* before an iteration"
    ):
        from_onnx(proto)


def stacking_loop(scan: bool) -> onnx.ModelProto:
    """Stacks x + i for every i below n (Loop), or x + the row of a (n, 1) tensor (Scan)."""
    if scan:
        inner = body([helper.make_node("Add", ["x", "r"], ["row"])], [("r", FLOAT, [1])], [("row", FLOAT, [256])])
        node = helper.make_node("Scan", ["n"], ["rows"], body=inner, num_scan_inputs=1)
        return model([node], [("x", FLOAT, [256]), ("n", FLOAT, ["n", 1])], [("rows", FLOAT, ["n", 256])])
    nodes = [
        helper.make_node("Cast", ["i"], ["f"], to=FLOAT),
        helper.make_node("Add", ["x", "f"], ["row"]),
        helper.make_node("Identity", ["c_in"], ["go"]),
    ]
    inner = body(nodes, [("i", INT64, []), ("c_in", BOOL, [])], [("go", BOOL, []), ("row", FLOAT, [256])])
    node = helper.make_node("Loop", ["n", ""], ["rows"], body=inner)
    return model([node], [("x", FLOAT, [256]), ("n", INT64, [])], [("rows", FLOAT, ["n", 256])])


@pytest.mark.parametrize("scan", [False, True])
def test_memory_of_stacked_results_grows_with_their_number(scan: bool) -> None:
    machine = pyvm.VirtualMachine(pyvm.compile(stacking_loop(scan), check=True))
    x = np.arange(256, dtype=np.float32)
    allocated = {}
    for n in (1000, 4000):
        count = np.arange(n, dtype=np.float32)[:, None] if scan else np.array(n)
        np.testing.assert_array_equal(machine["main"](x, count).numpy(), x + np.arange(n, dtype=np.float32)[:, None])
        report = machine.profile("main", x, count)
        allocated[n] = sum(record.allocated_bytes for record in report.records)
    assert allocated[1000] > 1000 * x.nbytes
    assert allocated[4000] < 4.5 * allocated[1000]  # copies of a stack that grows by rows would take 16 times as much
