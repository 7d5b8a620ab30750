"""The text form: what is printed parses back to the same module; what is wrong is named with line and column."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyvm
from pyvm import op
from pyvm.errors import ParseError
from pyvm.frontend.onnx import from_onnx
from pyvm.ir import (
    BlockBuilder,
    Call,
    CallableStructInfo,
    DataTypeImm,
    Function,
    GlobalVar,
    IRModule,
    ObjectStructInfo,
    PrimStructInfo,
    PrimValue,
    SeqExpr,
    ShapeExpr,
    ShapeStructInfo,
    SymVar,
    TensorStructInfo,
    Tuple,
    Var,
    VarBinding,
    call_packed,
    check_well_formed,
    parse,
    structural_equal,
    sym_max,
    sym_min,
)
from pyvm.transform import DEFAULT_PIPELINE, run_passes
from tests.ir_text import build, tensor
from tests.models.light import NAMES, light_model
from tests.property.test_random_graphs import Generator

N, M = SymVar("n"), SymVar("m")
FILES = Path(onnx.backend.test.__file__).parent / "data" / "light"  # weights are fills: small texts


def assert_round_trip(module: IRModule) -> None:
    text = module.script()
    again = parse(text)
    assert structural_equal(module, again), text
    assert again.script() == text
    check_well_formed(again)


def assert_round_trips_after_every_pass(module: IRModule) -> None:
    seen = [module]

    def look(number: int, name: str, result: IRModule) -> None:
        if result is not seen[-1]:
            assert_round_trip(result)
        seen.append(result)

    run_passes(module, DEFAULT_PIPELINE, look)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_random_programs_before_and_after_every_pass(data: st.DataObject) -> None:
    module = Generator(data).module()
    assert_round_trip(module)
    assert_round_trips_after_every_pass(module)


@pytest.mark.parametrize("name", NAMES)
def test_light_models_before_and_after(name: str) -> None:
    """The nine networks: as imported and as lowered; the smaller ones after every pass."""
    module = from_onnx(_shrunk(onnx.load(FILES / f"light_{name}.onnx")))
    assert_round_trip(module)
    if name in ("bvlc_alexnet", "squeezenet"):
        assert_round_trips_after_every_pass(module)
    else:
        assert_round_trip(run_passes(module))


def _shrunk(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph; weights of more than a mebibyte become inputs, so that the text stays small."""
    graph = model.graph
    large = [tensor for tensor in graph.initializer if len(tensor.raw_data) > 1 << 20]
    for weight in large:
        graph.input.add().CopyFrom(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
        graph.initializer.remove(weight)
    return model


def test_a_whole_model_with_its_weights() -> None:
    module = from_onnx(light_model("squeezenet"))
    assert_round_trip(module)
    elided = module.script(elide_constants=True)
    assert len(elided) < len(module.script()) // 20
    with pytest.raises(ParseError, match=r"line \d+, column \d+: the elements of this constant were elided"):
        parse(elided)


def test_every_leaf_and_struct_info() -> None:
    bb = BlockBuilder()
    f = Var("f", CallableStructInfo([tensor(N), PrimStructInfo("int64", M)], tensor(N + M)))
    g = Var("g", CallableStructInfo(None, ObjectStructInfo()))
    params = [
        Var("input:0", tensor(N, 4)),
        Var("s", ShapeStructInfo((M, 3))),
        Var("t", ShapeStructInfo(ndim=2)),
        Var("u", TensorStructInfo(None, None)),
        Var("v", TensorStructInfo(None, "float16", 3)),
        Var("if", PrimStructInfo("bool")),
        Var("`\\\n", ObjectStructInfo()),
        f,
        g,
        Var("relu", g.struct_info),
    ]
    shape = (N * 2 + 1, (N + 1) // 2 * M, sym_max(N, M) % 7, sym_min(N - 1, 3) * -2, N // M, N * N * M - 5)
    signed = SymVar("k", nonnegative=False)
    with bb.function("main module", params, attrs={"a": (1,), "b": [], "c": "x\ty", "d": None, "e": (N + 1) // 2}):
        with bb.source('a "source" \\ with # and ]\n'):
            bb.emit(call_packed("user.f", ShapeExpr(shape), N + 1, 0, -1, 2.5, -0.0, float("inf"), True, None, "'\"\n"))
        bb.match_cast(params[2], ShapeStructInfo((signed, M)), "cast")
        bb.emit(call_packed("user.f", DataTypeImm("bfloat16"), sym_max(signed, 0), np.float64("nan")))
        bb.emit(Call(g, [params[0]]), "_")
        bb.emit(Call(params[-1], [params[0]]), "relu")
        bb.emit(op.relu(params[0]), "relu")
        r = bb.emit_if(params[5], lambda: bb.emit(op.exp(params[0])), lambda: params[0], "r")
        bb.emit_func_output(bb.emit(Tuple([r, GlobalVar("main module"), PrimValue(signed), Tuple([])])))
    assert_round_trip(bb.get())


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint64", "bool", ">f4"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (1, 2), (5, 1), (2, 0, 3)])
def test_constants_keep_every_bit(dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    data = np.frombuffer(rng.bytes(np.dtype(dtype).itemsize * 30), np.uint8)
    if dtype == "bool":
        data = data & 1
    values = data.view(dtype)[: int(np.prod(shape))].reshape(shape)
    assert_round_trip(build(lambda bb, x: bb.emit(Tuple([x, *map(bb.emit, [values])])), False, x=tensor(2)))


def test_special_floats() -> None:
    for value in (np.nan, -np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38):
        assert_round_trip(build(lambda bb, x, v=value: bb.emit(op.add(x, np.float32(v))), x=tensor(2)))


def test_local_functions() -> None:
    y = Var("y", tensor(N))
    inner = BlockBuilder()
    x = Var("x", tensor(N))
    inner.open_scope()
    local = Function([y], inner.close_scope(inner.emit(op.add(x, y))), attrs={"kind": "local"})
    bb = BlockBuilder()
    with bb.function("main", [x]):
        f = Var("f", local.struct_info)
        bb.emit_binding(VarBinding(f, local, "the lambda"))
        bb.emit_func_output(bb.emit(Call(f, [x])))
    assert_round_trip(bb.get())


def test_written_by_hand() -> None:
    module = parse(
        textwrap.dedent(
            """
            # y = relu(x @ w) + 1, and what happens to it
            def helper(x: Tensor((n, 4), float32)) -> Tensor((n, 4), float32):
                return add(relu(x), const(1.0, float32))   # nested calls are fine

            def main(x: Tensor((n, 4), float32), c: Tensor((), bool)):
                with dataflow():
                    a = relu(x)
                    b = add(a,
                            a)
                if c:
                    r = @helper(b)
                else:
                    r = b
                return r
            """
        )
    )
    check_well_formed(module)
    assert module["main"].ret_struct_info == tensor(N, 4)
    assert_round_trip(module)


MAIN = "def main(x: Tensor((n, 4), float32)) -> Object:\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MAIN + "    return y\n", "line 2, column 12: variable y is used where it is not defined"),
        (MAIN + "    y = rleu(x)\n    return y\n", "line 2, column 9: there is no operator 'rleu'; did you mean"),
        (MAIN + "    y = add(x)\n    return y\n", "line 2, column 9: add"),
        (MAIN + "    y = relu(x\n    return y\n", r"line 2, column 13: '\(' is never closed"),
        (MAIN + "    y = relu(x))\n    return y\n", r"line 2, column 16: unmatched '\)'"),
        (MAIN + "    y: Tensor((n, 4), int32) = relu(x)\n    return y\n", "line 2, column 32: .* float32"),
        (MAIN + "    y = relu(x)\n    y = relu(x)\n    return y\n", "line 3, column 5: variable y is bound twice"),
        (MAIN + "    y = relu(x)\n", "the function ends without `return`"),
        (MAIN + "  \n", "expected an indented block"),
        (MAIN + "    y = relu(x) relu\n", "line 2, column 17: expected the end of the line, found 'relu'"),
        (MAIN + "    y = $\n", r"line 2, column 9: unexpected character '\$'"),
        (MAIN + "    return const(data[3], float32, shape=(2,))\n", r"line 2, column 12: there is no data\[3\]"),
        (MAIN + '    return extern("\\ud800")(x)\n', "line 2, column 19: malformed escape in"),
        (MAIN + '    return extern("\ud800")(x)\n', "line 2, column 19: malformed escape in"),
        (MAIN + '    return x\n\ndata:\n    0: "AA\u00e9="\n', r"line 5, column 5: data\[0\] is not base64"),
        (MAIN + '    return x\n\ndata:\n    0: "AAA"\n', r"line 5, column 5: data\[0\] is not base64"),
        (MAIN + "    if x:\n        a = x\n    else:\n        b = x\n    return a\n", "line 5, column 9: the branches"),
        (MAIN + "        return x\n   return x\n", "line 3, column 4: this indentation matches no line above"),
        ("def main(x):\n    return x\n", "line 1, column 10: parameter x needs struct info"),
        ("def main(x: Tensr((2,), f)):\n    return x\n", "line 1, column 13: there is no struct info Tensr"),
        ("def main(x: Tensor((n//0,), float32)):\n    return x\n", "line 1, column 22: n // 0"),
        ("def main(x: Tensor((2,), flot32)):\n    return x\n", "line 1, column 13: .*flot32"),
        (MAIN + "    return x\n" + MAIN + "    return x\n", "line 3, column 5: there are two functions 'main'"),
        (MAIN + '    y = extern("f")(x, dps=n)\n    return y\n', "extern 'f': dps must be True or False, got n"),
        (MAIN + "    return " + "(" * 5000 + ")" * 5000 + "\n", "nested too deeply"),
    ],
)
def test_errors_name_line_and_column(text: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse(text)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_text_is_an_error_or_another_program(data: st.DataObject) -> None:
    text = build(lambda bb, x: bb.emit(op.add(bb.emit(op.relu(x)), np.arange(4.0, dtype=np.float32))), x=tensor(N, 4))
    source = text.script()
    position = data.draw(st.integers(0, len(source) - 1))
    damage = data.draw(st.sampled_from(["", "(", ")", "\n", "    ", "x", '"', ",", "-", "9", "@", "\\"]))
    try:
        parse(source[:position] + damage + source[position + 1 :])
    except ParseError:
        pass


def test_equality_sees_differences() -> None:
    def variant(constant: float, source: str = "s", name: str = "y") -> IRModule:
        bb = BlockBuilder()
        x = Var("x", tensor(N))
        with bb.function("main", [x]), bb.source(source):
            bb.emit_func_output(bb.emit(op.add(x, np.float32(constant)), name))
        return bb.get()

    assert structural_equal(variant(1), variant(1, name="other"))
    assert not structural_equal(variant(1), variant(2))
    assert not structural_equal(variant(0.0), variant(-0.0))
    assert not structural_equal(variant(1), variant(1, source="t"))
    one = variant(1)["main"]
    renamed = Function([Var("z", tensor(N))], SeqExpr([], one.params[0]))
    assert not structural_equal(one, renamed)


def test_the_program_in_the_readme() -> None:
    readme = Path(__file__).parents[3].joinpath("README.md").read_text(encoding="utf-8")
    module = parse(
        next(block for block in readme.split("```text\n")[1:] if block.startswith("def main")).split("```")[0]
    )
    assert_round_trip(module)
    x = np.arange(3, dtype=np.float32)
    main = pyvm.VirtualMachine(pyvm.compile(module))["main"]
    np.testing.assert_array_equal(main(x, np.array(4)).numpy(), 5 * x)
