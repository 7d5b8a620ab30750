"""Shape computations: what exporters write with tensors must come out as dimensions, and compute the right thing."""

from __future__ import annotations

import numpy as np
import pytest

from pyvm.frontend.onnx import from_onnx
from pyvm.frontend.onnx.shape_values import (
    content_of_array,
    from_front,
    is_negative,
    is_zero,
    larger,
    lower_bound,
    make_content,
    smaller,
)
from pyvm.ir import Call, MatchCast, Prim, SymVar, TensorStructInfo, evaluate
from pyvm.op.registry import Op
from tests.pyvm.frontend.checking import check, model

N, M = SymVar("N"), SymVar("M")
RNG = np.random.default_rng(0)


def output_shape(text: str, opset: int = 17) -> tuple[Prim, ...]:
    """The shape of the first output, in symbols; nothing may be left to the run time."""
    main = from_onnx(model(text, opset))["main"]
    assert not any(isinstance(binding, MatchCast) for binding in main.body.bindings())
    info = main.ret_struct_info
    assert isinstance(info, TensorStructInfo) and info.shape is not None
    return info.shape


# A shape is computed from that of x, (N, M, 4), and used by Reshape or Expand.
ARITHMETIC = {
    "flatten by -1": ("n = Gather<axis = 0>(s, zero)  t = Concat<axis = 0>(n, minus)", (N, 4 * M)),
    "product": (
        "a, b, c = Split<axis = 0>(s)  p = Mul(a, b)  t = Concat<axis = 0>(p, c)",
        (N * M, 4),
    ),
    "scalars": (
        "a = Gather<axis = 0>(s, i0)  b = Gather<axis = 0>(s, i1)  p = Mul(b, four)  a1 = Unsqueeze(a, zero)"
        "  p1 = Unsqueeze(p, zero)  t = Concat<axis = 0>(a1, p1)",
        (N, 4 * M),
    ),
    "slice": ("h = Slice(s, zero, two)  q = Mul(h, twice)  t = Concat<axis = 0>(q, minus)", (2 * N, 2 * M, 1)),
    "halves": (
        "f = Cast<to = 1>(s)  g = Mul(f, half)  h = Floor(g)  k = Cast<to = 7>(h)  l = Gather<axis = 0>(k, last)"
        "  n = Gather<axis = 0>(s, zero)  t = Concat<axis = 0>(n, l, minus)",
        (N, 2, 2 * M),
    ),
    "where": (
        "e = Equal(s, minus)  one = ConstantOfShape<value = int64[1] {1}>(three)  w = Where(e, one, s)"
        "  n = Gather<axis = 0>(w, zero)  t = Concat<axis = 0>(n, minus)",
        (N, 4 * M),
    ),
    "size": ("z = Size(x)  t = Unsqueeze(z, zero)", (4 * N * M,)),
    "product of a part": (
        "h = Slice(s, zero, two)  p = ReduceProd<keepdims = 1>(h)  t = Concat<axis = 0>(p, minus)",
        (N * M, 4),
    ),
    "arithmetic": (
        "n = Gather<axis = 0>(s, zero)  a = Add(n, n)  b = Sub(a, n)  c = Div(b, onev)  d = Max(c, zero)"
        "  e = Squeeze(d)  f = Reshape(e, onev)  t = Concat<axis = 0>(f, minus)",
        (N, 4 * M),
    ),
    "int32": (
        "q = Cast<to = 6>(s)  n = Gather<axis = 0>(q, zero)  r = Cast<to = 7>(n)  t = Concat<axis = 0>(r, minus)",
        (N, 4 * M),
    ),
}
CONSTANTS = """<
    int64[1] zero = {0}, int64[1] two = {2}, int64[1] minus = {-1}, int64[1] twice = {2}, int64[1] last = {-1},
    int64[1] three = {3}, int64[1] onev = {1}, int64 i0 = {0}, int64 i1 = {1}, int64 four = {4}, float half = {0.5}
>"""


@pytest.mark.parametrize("name", ARITHMETIC)
def test_reshape_to_a_computed_shape(name: str) -> None:
    nodes, expected = ARITHMETIC[name]
    target = "Q, " * (len(expected) - 1) + "R"
    text = f"g (float[N, M, 4] x) => (float[{target}] y) {CONSTANTS} {{ s = Shape(x)  {nodes}  y = Reshape(x, t) }}"
    assert output_shape(text) == expected
    check(model(text), *({"x": RNG.standard_normal(shape, dtype=np.float32)} for shape in [(2, 3, 4), (1, 6, 4)]))


def test_expand_of_a_computed_shape() -> None:
    text = """g (float[N, M] x, float[1, M] b) => (float[P, Q] y) { s = Shape(x)  y = Expand(b, s) }"""
    assert output_shape(text) == (N, M)


def test_shape_with_start_and_end() -> None:
    text = "g (float[N, M, 4] x) => (float[P, Q] y) { s = Shape<start = -2, end = 3>(x)  y = ConstantOfShape(s) }"
    assert output_shape(text) == (M, 4)


def test_known_elements_can_be_used_as_a_tensor_too() -> None:
    text = """g (float[N, M] x) => (float[2] y, int64[2] s) {
        s = Shape(x)
        f = Cast<to = 1>(s)
        y = Sqrt(f)
    }"""
    check(model(text), *({"x": np.zeros(shape, np.float32)} for shape in [(2, 3), (5, 1)]))


def test_ratios_can_be_used_as_a_tensor_too() -> None:
    text = """g (float[N, M] x) => (float[2] y) <float half = {0.5}> {
        s = Shape(x)  f = Cast<to = 1>(s)  y = Mul(f, half)
    }"""
    check(model(text), *({"x": np.zeros(shape, np.float32)} for shape in [(2, 3), (5, 1)]))


def test_undecided_comparisons_are_left_to_the_run_time() -> None:
    text = """g (float[N, M] x) => (int64[2] y) <int64[2] two = {2, 2}> {
        s = Shape(x)  less = Less(s, two)  y = Where(less, two, s)
    }"""
    check(model(text), *({"x": np.zeros(shape, np.float32)} for shape in [(2, 3), (1, 1), (7, 2)]))


# What is done with s, the shape (N, M, 4) of x as a tensor, and with f, the same as floats.
ELEMENTS = {
    "mul": ("float", "y = Mul(f, half)"),
    "mul, add": ("float", "a = Mul(f, half)  b = Add(a, half)  y = Floor(b)"),
    "add, sub": ("float", "a = Add(half, f)  b = Sub(a, f)  y = Ceil(a)"),
    "add ratios": ("float", "a = Mul(f, half)  b = Add(a, a)  y = Mul(b, a)"),
    "sub ratios": ("float", "a = Mul(f, half)  b = Sub(f, a)  y = Mul(b, f)"),
    "third": ("float", "a = Mul(f, third)  y = Add(a, half)"),
    "div floats": ("float", "a = Div(f, two)  b = Div(a, two)  y = Floor(b)"),
    "div by a fraction": ("float", "y = Div(f, half)"),
    "div symbols": ("float", "a = Mul(f, f)  y = Div(a, f)"),
    "ceil": ("int64", "a = Mul(f, half)  b = Ceil(a)  y = Cast<to = 7>(b)"),
    "truncate": ("int64", "a = Mul(f, half)  y = Cast<to = 7>(a)"),
    "truncate negative": ("int64", "a = Mul(f, half)  b = Neg(a)  y = Cast<to = 7>(b)"),
    "div": ("int64", "y = Div(s, itwo)"),
    "div negative": ("int64", "a = Sub(itwo, s)  y = Div(a, itwo)"),
    "div by it": ("int64", "a = Mul(s, s)  y = Div(a, s)"),
    "mod": ("int64", "y = Mod(s, itwo)"),
    "mod by it": ("int64", "y = Mod(itwo, s)"),
    "abs": ("int64", "a = Sub(s, itwo)  b = Abs(a)  c = Abs(s)  y = Add(b, c)"),
    "neg": ("int64", "y = Neg(s)"),
    "min": ("int64", "y = Min(s, itwo)"),
    "max": ("int64", "a = Sub(s, itwo)  y = Max(a, s, itwo)"),
    "max of floats": ("float", "y = Max(f, half)"),
    "reduce": (
        "int64",
        "a = ReduceMax(s)  b = ReduceMin<keepdims = 0>(s)  c = ReduceProd(s)  y = Min(a, b, c)",
    ),
    "bool": ("bool", "a = Sub(s, itwo)  b = Cast<to = 9>(a)  c = Cast<to = 9>(s)  y = And(b, c)"),
    "not": ("bool", "a = Cast<to = 9>(s)  b = Not(a)  y = Or(a, b)"),
    "equal": ("bool", "a = Equal(s, s)  b = Equal(s, itwo)  y = Xor(a, b)"),
    "less": ("bool", "a = Less(s, zero)  b = Greater(s, zero)  y = And(a, b)"),
    "less or equal": (
        "bool",
        "a = LessOrEqual(s, s)  b = GreaterOrEqual(zero, s)  c = Or(a, b)  d = LessOrEqual(one, s)  y = And(c, d)",
    ),
    "where": ("int64", "a = Less(s, zero)  y = Where(a, itwo, s)"),
    "tile": ("int64", "y = Tile(s, itwo)"),
    "expand": ("int64", "t = Concat<axis = 0>(itwo, three)  y = Expand(s, t)"),
    "split": ("int64", "a, b = Split<axis = 0>(s, onetwo)  y = Concat<axis = 0>(b, a)"),
    "flatten": ("int64", "y = Flatten<axis = 0>(s)"),
    "transpose": ("int64", "y = Transpose(s)"),
    "slice backwards": ("int64", "y = Slice(s, minus, lowest, zero, minus)"),
    "int8": ("int8", "y = Cast<to = 3>(s)"),
}
ELEMENT_CONSTANTS = """<
    float[1] half = {0.5}, float[1] third = {0.3333333}, float[1] two = {2.0}, int64[1] itwo = {2}, int64[1] zero = {0},
    int64[1] one = {1}, int64[1] three = {3}, int64[2] onetwo = {1, 2}, int64[1] minus = {-1},
    int64[1] lowest = {-9223372036854775808}
>"""


@pytest.mark.parametrize("name", ELEMENTS)
def test_elements_are_computed_like_tensors(name: str) -> None:
    dtype, nodes = ELEMENTS[name]
    text = (
        f"g (float[N, M, 4] x) => ({dtype}[P] y) {ELEMENT_CONSTANTS} {{ s = Shape(x)  f = Cast<to = 1>(s)  {nodes} }}"
    )
    proto = model(text)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    check(proto, *({"x": np.zeros(shape, np.float32)} for shape in [(2, 3, 4), (1, 1, 4), (7, 2, 4)]))


def test_an_index_outside_the_shape_is_an_error() -> None:
    from pyvm.errors import FrontendError

    text = "g (float[N] x) => (int64 y) <int64 two = {2}> { s = Shape(x)  y = Gather(s, two) }"
    with pytest.raises(FrontendError, match="index 2 is outside a dimension of 1"):
        from_onnx(model(text))


def test_no_tensor_is_computed_for_a_shape() -> None:
    """What only serves a Reshape leaves no trace in the program."""
    nodes, _ = ARITHMETIC["scalars"]
    text = f"g (float[N, M, 4] x) => (float[Q, R] y) {CONSTANTS} {{ s = Shape(x)  {nodes}  y = Reshape(x, t) }}"
    calls = [b.value for b in from_onnx(model(text))["main"].body.bindings() if isinstance(b.value, Call)]
    assert [call.op.name for call in calls if isinstance(call.op, Op)] == [
        "reshape",
        "copy",
    ]  # a result is not a view of x


# --- the arithmetic itself

VALUES = [-7, -2, -1, 0, 1, 2, 5]


@pytest.mark.parametrize("value", VALUES)
def test_indicators_agree_with_their_meaning(value: int) -> None:
    unknown = SymVar("v", nonnegative=False)
    environment = {"v": value}
    assert evaluate(is_negative(unknown), environment) == (value < 0)
    assert evaluate(is_zero(unknown), environment) == (value == 0)
    assert evaluate(from_front(unknown, 8), environment) == (value + 8 if value < 0 else value)
    assert is_negative(value) == (value < 0) and is_zero(value) == (value == 0)


def test_dimensions_are_at_least_one() -> None:
    assert lower_bound(N - 1) == 0 and lower_bound(N - 2) == -1 and lower_bound(2 * N + M) == 3
    assert is_negative(N - 1) == 0 and from_front(N - 1, N) == N - 1
    assert smaller(N, N + M) == N and larger(N, N + M) == N + M
    assert larger(0, N - 1) == N - 1 and smaller(N, 1) == 1


def test_contents() -> None:
    assert content_of_array(np.zeros(1000)) is None and content_of_array(np.array(["a"])) is None
    content = content_of_array(np.array([[1, 2]]))
    assert content is not None and content.shape == (1, 2) and type(content[0, 0]) is int
    assert make_content([N, 2]).tolist() == [N, 2] and make_content([N], ()).shape == ()


def test_fractions_beside_symbols_keep_their_value() -> None:
    text = """g (float[N, M] x) => (float[3] y) <float[1] half = {0.5}> {
        s = Shape(x)  f = Cast<to = 1>(s)  c = Concat<axis = 0>(half, f)  y = Neg(c)
    }"""
    check(model(text), *({"x": np.zeros(shape, np.float32)} for shape in [(2, 3), (5, 1)]))


@pytest.mark.parametrize("call", ["Unsqueeze(s, a)", "ReduceSum(s, a)", "ReduceSum<noop_with_empty_axes = 1>(s)"])
def test_shapes_with_axes_of_run_time(call: str) -> None:
    proto = model(f"g (float[N, M] x, int64[1] a) => (int64[P] y) {{ s = Shape(x)  y = {call} }}")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    check(proto, *({"x": np.zeros((2, 3), np.float32), "a": np.array([axis])} for axis in (0, -1)))


def test_empty_contents_of_many_rows() -> None:
    # Nested lists of it would be 2^40 lists of nothing.
    content = content_of_array(np.empty((1 << 40, 0), np.int64))
    assert content is not None and content.shape == (1 << 40, 0)
