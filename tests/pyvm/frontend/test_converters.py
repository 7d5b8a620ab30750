"""Converters where the backend suite does not look: old opsets, symbols, arguments of run time, half floats.

Expected values come from ONNX Runtime, or from numpy where an opset is older than what the runtime has.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest

import pyvm
from pyvm.errors import FrontendError, ShapeMismatchError
from pyvm.frontend.onnx import from_onnx
from tests.pyvm.frontend.checking import check, model

RNG = np.random.default_rng(0)


def random(*shape: int, dtype: str = "float32") -> np.ndarray:
    """Standard normal values."""
    return RNG.standard_normal(shape).astype(dtype)


# --- old opsets: attributes that became inputs, other defaults

X = random(2, 3, 4)
OLD = {
    "Squeeze": (1, "g (float[2,1,4] x) => (float[2,4] y) { y = Squeeze<axes = [1]>(x) }", X[:, :1], X[:, 0]),
    "Unsqueeze": (1, "g (float[2,3,4] x) => (float[2,1,3,4] y) { y = Unsqueeze<axes = [1]>(x) }", X, X[:, None]),
    "Reshape": (1, "g (float[2,3,4] x) => (float[2,12] y) { y = Reshape<shape = [0, -1]>(x) }", X, X.reshape(2, 12)),
    "Slice": (
        1,
        "g (float[2,3,4] x) => (float[2,2,3] y) { y = Slice<axes = [1, 2], starts = [1, 0], ends = [99, -1]>(x) }",
        X,
        X[:, 1:, :-1],
    ),
    "Pad 1": (1, "g (float[2,3,4] x) => (float[2,3,6] y) { y = Pad<paddings = [0,0,1,0,0,1]>(x) }", X, None),
    "Pad 2": (2, "g (float[2,3,4] x) => (float[2,3,6] y) { y = Pad<pads = [0,0,1,0,0,1], value = 3.0>(x) }", X, None),
    "Clip": (6, "g (float[2,3,4] x) => (float[2,3,4] y) { y = Clip<max = 0.5>(x) }", X, np.minimum(X, 0.5)),
    "Split": (
        2,
        "g (float[2,3,4] x) => (float[2,1,4] y, float[2,2,4] z) { y, z = Split<axis=1, split=[1,2]>(x) }",
        X,
        X,
    ),
    "Cast": (1, 'g (float[2,3,4] x) => (int32[2,3,4] y) { y = Cast<to = "INT32">(x) }', X, X.astype("i4")),
    "Concat": (1, "g (float[2,3,4] x) => (float[2,6,4] y) { y = Concat(x, x) }", X, np.concatenate([X, X], 1)),
    "Dropout": (6, "g (float[2,3,4] x) => (float[2,3,4] y) { y = Dropout<is_test = 1>(x) }", X, X),
    "ReduceSum": (1, "g (float[2,3,4] x) => (float[2,4] y) { y = ReduceSum<axes=[1], keepdims=0>(x) }", X, X.sum(1)),
    "Selu": (1, "g (float[2,3,4] x) => (float[2,3,4] y) { y = Selu(x) }", X, None),
    "TopK": (1, "g (float[2,3,4] x) => (float[2,3,2] y, int64[2,3,2] i) { y, i = TopK<k = 2>(x) }", X, X),
    "Sum": (1, "g (float[2,3,4] x) => (float[2,3,4] y) { y = Sum(x, x, x) }", X, 3 * X),
    "Softmax": (1, "g (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax(x) }", X, None),
    "LogSoftmax": (11, "g (float[2,3,4] x) => (float[2,3,4] y) { y = LogSoftmax<axis = 0>(x) }", X, None),
    "Upsample": (7, "g (float[2,3,4] x) => (float[2,6,8] y) { y = Upsample<scales = [1.0, 2.0, 2.0]>(x) }", X, None),
}


@pytest.mark.parametrize("name", OLD)
def test_old_opsets(name: str) -> None:
    opset, text, x, expected = OLD[name]
    results: Sequence[np.ndarray] = [expected] if expected is not None else []
    if name == "Pad 1":
        results = [np.pad(X, [(0, 0), (0, 0), (1, 1)])]
    elif name == "Pad 2":
        results = [np.pad(X, [(0, 0), (0, 0), (1, 1)], constant_values=3)]
    elif name == "Split":
        results = [X[:, :1], X[:, 1:]]
    elif name == "Selu":
        results = [(1.0507 * np.where(X > 0, X, 1.6732 * (np.exp(X) - 1))).astype("f4")]
    elif name == "TopK":
        order = np.argsort(-X, axis=-1, kind="stable")[..., :2]
        results = [np.take_along_axis(X, order, -1), order]
    elif name == "Softmax":
        rows = np.exp(X.reshape(2, 12))
        results = [(rows / rows.sum(1, keepdims=True)).reshape(X.shape)]
    elif name == "LogSoftmax":
        results = [X - np.log(np.exp(X).sum())]
    elif name == "Upsample":
        results = [X.repeat(2, 1).repeat(2, 2)]
    check(model(text, opset), {"x": x}, expected=results)


def test_tile_along_one_axis() -> None:
    text = "g (float[2,3,4] x) => (float[2,9,4] y) <int64 n = {3}, int64 axis = {1}> { y = Tile(x, n, axis) }"
    check(model(text, 1), {"x": X}, expected=[np.tile(X, (1, 3, 1))])


@pytest.mark.parametrize("p", [1, 2, 3])
def test_global_lp_pool(p: int) -> None:
    text = f"g (float[N,3,4] x) => (float[N,3,1] y) {{ y = GlobalLpPool<p = {p}>(x) }}"
    check(model(text), {"x": X})


def test_group_normalization_with_scales_per_group() -> None:
    text = """g (float[2,4,3] x, float[2] s, float[2] b) => (float[2,4,3] y) {
        y = GroupNormalization<num_groups = 2>(x, s, b)
    }"""
    x, scale, bias = random(2, 4, 3), random(2), random(2)
    groups = x.reshape(2, 2, 6)
    centered = groups - groups.mean(-1, keepdims=True)
    normal = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
    expected = (normal * scale[:, None] + bias[:, None]).reshape(x.shape)
    check(model(text, 18), {"x": x, "s": scale, "b": bias}, expected=[expected.astype("f4")])


def test_normalizations_with_scales_that_broadcast() -> None:
    text = """g (float[2,3,4] x, float[4] s, float[1] b) => (float[2,3,4] y, float[2,1,1] m, float[2,1,1] d) {
        y, m, d = LayerNormalization<axis = 1>(x, s, b)
    }"""
    x, scale, bias = random(2, 3, 4), random(4), random(1)
    mean = x.mean((1, 2), keepdims=True)
    inverse = 1 / np.sqrt(((x - mean) ** 2).mean((1, 2), keepdims=True) + 1e-5)
    expected = [(x - mean) * inverse * scale + bias, mean, inverse]
    check(model(text), {"x": x, "s": scale, "b": bias}, expected=expected)
    text = "g (float[2,3,4] x, float[4] s) => (float[2,3,4] y) { y = RMSNormalization<axis = 1>(x, s) }"
    expected = [x / np.sqrt((x**2).mean((1, 2), keepdims=True) + 1e-5) * scale]
    check(model(text, 23), {"x": x, "s": scale}, expected=expected)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_before_coordinates_had_names(mode: str) -> None:
    text = f"""g (float[1,2,H,W] x) => (float[1,2,P,Q] y) <float[4] s = {{1.0, 1.0, 2.0, 1.5}}> {{
        y = Resize<mode = "{mode}">(x, s)
    }}"""
    check(model(text, 10), *({"x": random(1, 2, *size)} for size in [(4, 6), (3, 2)]))


def test_one_hot_of_a_known_depth() -> None:
    text = """g (int64[N] i) => (float[N, 5] y) <int64 depth = {5}, float[2] values = {-1.0, 2.0}> {
        y = OneHot(i, depth, values)
    }"""
    check(model(text, 11), {"i": np.array([0, 4, -1, -5, 2])})


@pytest.mark.parametrize(("shape", "target"), [((2, 3), [4]), ((2, 3), [4, -1]), ((5, 2), [3, 3]), ((1, 2), [-1, 3])])
def test_reshape_to_another_number_of_elements(shape: tuple[int, int], target: list[int]) -> None:
    """Found out when it runs, if the shape is an input, and also if it is a constant and the data's size is not."""
    x = {"x": random(*shape)}
    constant = f"<int64[{len(target)}] p = {{{', '.join(map(str, target))}}}>"
    symbols = ", ".join("ABC"[: len(target)])
    for given in (True, False):
        inputs, initializer = (", int64[Q] p", "") if given else ("", constant)
        proto = model(f"g (float[N, M] x{inputs}) => (float[{symbols}] y) {initializer} {{ y = Reshape(x, p) }}")
        if given:
            proto.graph.input[1].type.tensor_type.shape.dim[0].dim_value = len(target)
        main = pyvm.VirtualMachine(pyvm.compile(proto))["main"]
        with pytest.raises(ShapeMismatchError, match="Reshape-17"):
            main(*x.values(), *([np.array(target)] if given else []))


def test_expand_to_another_symbol() -> None:
    text = "g (float[N, 3] x, float[M, 3] w) => (float[P, 3] y) { s = Shape(w)  y = Expand(x, s) }"
    feeds = [{"x": random(n, 3), "w": random(m, 3)} for n, m in [(4, 4), (1, 5), (5, 1)]]
    check(model(text), *feeds)


def test_range_up_to_a_dimension_and_up_to_a_value() -> None:
    text = """g (float[N] x, int64 limit) => (int64[P] y, int64[Q] z) <int64 one = {1}, int64 two = {2}> {
        n = Size(x)  y = Range(one, n, two)  z = Range(one, limit, two)
    }"""
    check(model(text), *({"x": random(n), "limit": np.array(k)} for n, k in [(1, 0), (2, 5), (9, 2)]))


@pytest.mark.parametrize("axis", [None, 1, -2])
def test_broadcasting_on_request(axis: int | None) -> None:
    attribute = "" if axis is None else f", axis = {axis}"
    shape = (4,) if axis is None else (3,)
    w = random(*shape)
    text = f"g (float[2,3,4] x, float[{shape[0]}] w) => (float[2,3,4] y) {{ y = Add<broadcast = 1{attribute}>(x, w) }}"
    expected = X + (w if axis is None else w[:, None])
    check(model(text, 6), {"x": X, "w": w}, expected=[expected])


def test_slopes_per_channel_before_broadcasting() -> None:
    text = "g (float[2,3,4] x, float[3] s) => (float[2,3,4] y) { y = PRelu(x, s) }"
    slope = random(3)
    check(model(text, 6), {"x": X, "s": slope}, expected=[np.where(X < 0, slope[:, None] * X, X)])


# --- symbolic dimensions: one executable for all sizes

IMAGES = [(1, 3, 8, 9), (2, 3, 17, 5), (1, 3, 1, 1), (3, 3, 6, 6)]
WEIGHTS = {"w": random(4, 3, 3, 3), "b": random(4), "d": random(3, 1, 3, 3), "u": random(3, 2, 3, 3)}
SYMBOLIC = {
    "conv": "Conv<pads = [1, 1, 1, 1], strides = [2, 1]>(x, w, b)",
    "conv same upper": 'Conv<auto_pad = "SAME_UPPER", strides = [2, 3]>(x, w, b)',
    "conv same lower": 'Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(x, w)',
    "conv same, stride 1": 'Conv<auto_pad = "SAME_UPPER">(x, w, b)',
    "depthwise": "Conv<group = 3, pads = [1, 1, 1, 1]>(x, d)",
    "conv transpose": "ConvTranspose<strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]>(x, u)",
    "max pool": "MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x)",
    "max pool ceil": "MaxPool<kernel_shape = [2, 3], strides = [2, 2], pads = [0, 1, 1, 1], ceil_mode = 1>(x)",
    "max pool same": 'MaxPool<kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER">(x)',
    "average pool": "AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(x)",
    "global average pool": "GlobalAveragePool(x)",
    "instance norm": "InstanceNormalization(x, one, one)",
    "lrn": "LRN<size = 3>(x)",
    "softmax": "Softmax<axis = 2>(x)",
    "reduce": "ReduceMean<axes = [0, 2], keepdims = 0>(x)",
    "transpose": "Transpose<perm = [3, 1, 0, 2]>(x)",
    "flatten": "Flatten<axis = 2>(x)",
    "pad": "Pad(x, pads)",
    "slice all but one": "Slice(x, zero, minus, three)",
    "slice the last two": "Slice(x, minus2, huge, three)",
    "slice backwards": "Slice(x, minus, lowest, three, minus)",
    "slice every second": "Slice(x, one1, huge, three, two)",
    "resize": 'Resize<mode = "linear", coordinate_transformation_mode = "asymmetric">(x, , scales)',
    "gather": "Gather<axis = 1>(x, two)",
    "tile": "Tile(x, repeats)",
    "concat": "Concat<axis = 1>(x, x, x)",
    "argmax": "ArgMax<axis = 3>(x)",
    "cumsum": "CumSum(x, two0)",
    "hardmax": "Hardmax<axis = 1>(x)",
}
LISTS = {
    "one": np.ones(3, "f4"),
    "pads": np.array([0, 0, 1, 2, 0, 1, 0, 3]),
    "zero": np.array([0]),
    "one1": np.array([1]),
    "two": np.array([2]),
    "two0": np.array(2),
    "three": np.array([3]),
    "minus": np.array([-1]),
    "minus2": np.array([-2]),
    "huge": np.array([2**63 - 1]),
    "lowest": np.array([-(2**63)]),
    "scales": np.array([1, 1, 2, 1.5], "f4"),
    "repeats": np.array([1, 2, 1, 2]),
}


@pytest.mark.parametrize("name", SYMBOLIC)
def test_symbolic_dimensions(name: str) -> None:
    call = SYMBOLIC[name]
    names = re.findall(r"\w+", call)
    used = {name: value for name, value in {**WEIGHTS, **LISTS}.items() if name in names}
    proto = model(f"g (float[N, 3, H, W] x) => (float[A, B, C, D] y) {{ y = {call} }}", 17, used)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    if name == "argmax":
        proto.graph.output[0].type.tensor_type.elem_type = 7
    images = [shape for shape in IMAGES if min(shape[2:]) > 1] if "slice" in name or "ceil" in name else IMAGES
    check(proto, *({"x": random(*shape)} for shape in images))


@pytest.mark.parametrize("operation", ["Add", "Mul", "Less", "Pow", "Max", "Where"])
def test_symbols_that_meet_may_broadcast(operation: str) -> None:
    """Two unrelated dimensions can turn out equal, or one of them 1; anything else is an error when it runs."""
    call, kind = f"{operation}(a, b)", "bool" if operation == "Less" else "float"
    if operation == "Where":
        call = "Where(c, a, b)"
    text = f"g (float[N, 3] a, float[M, 3] b) => ({kind}[K, 3] y) {{ c = Less(a, b)  y = {call} }}"
    pairs = [(4, 4), (1, 5), (5, 1), (1, 1)]
    check(model(text), *({"a": abs(random(n, 3)), "b": random(m, 3)} for n, m in pairs))


def test_symbols_that_meet_in_a_product_or_a_concatenation() -> None:
    text = """g (float[B, N, K] a, float[C, L, M] b) => (float[D, N, M] y, float[E, N, F] z) {
        y = MatMul(a, b)  z = Concat<axis = 2>(a, y)
    }"""
    shapes = [((2, 3, 4), (2, 4, 5)), ((1, 3, 4), (1, 4, 1))]
    check(model(text), *({"a": random(*a), "b": random(*b)} for a, b in shapes))


def test_sums_of_resized_maps() -> None:
    """Twice the half of n rounded up is n only for even n: what feature pyramids add is decided when they run."""
    text = """g (float[1, 2, H, W] x) => (float[1, 2, H, W] y) <float[4] scales = {1.0, 1.0, 2.0, 2.0}> {
        small = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x)
        large = Resize<nearest_mode = "floor", coordinate_transformation_mode = "asymmetric">(small, , scales)
        y = Add(x, large)
    }"""
    check(model(text), *({"x": random(1, 2, *size)} for size in [(4, 6), (8, 2)]))


# --- arguments that only the run time knows

DYNAMIC = {
    "Reshape": ("Reshape(x, p)", [[4, 6], [-1, 2], [0, 12], [2, 12]]),
    "Reshape, three": ("Reshape(x, p)", [[0, 0, -1], [4, 3, 2], [-1, 1, 1]]),
    "Expand": ("Expand(x, p)", [[5, 2, 3, 4], [1, 1, 1, 1], [2, 1, 3, 1]]),
    "Tile": ("Tile(x, p)", [[1, 2, 3], [2, 1, 1], [0, 1, 1]]),
    "Squeeze": ("s = Unsqueeze(x, p)  y = Squeeze(s, p)", [[0], [1], [-1], [2]]),
    "Unsqueeze": ("Unsqueeze(x, p)", [[0, 1], [-1, 1], [4, 0]]),
    "ReduceSum": ("ReduceSum<keepdims = 0>(x, p)", [[0], [-1], [1]]),
    "ReduceSum of two": ("ReduceSum<keepdims = 1>(x, p)", [[0, 2], [-1, 1], [1, 0]]),
    "ReduceSum of none": ("ReduceSum(x, p)", [[]]),
    "ConstantOfShape": ("ConstantOfShape(p)", [[2, 3], [0, 5]]),
    "Split": ("y, z = Split<axis = 2>(x, p)", [[1, 3], [2, 2], [0, 4]]),
    "Pad": ("Pad(x, p)", [[1, 0, 2, 0, 1, 0], [0, -1, 0, 1, 0, -1]]),
    "Slice": ("Slice(x, p, q)", [[0, 1], [-1, 0], [5, -9], [1, -2]]),
    "TopK": ("y, z = TopK(x, p)", [[1], [3]]),
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_arguments_of_run_time(name: str) -> None:
    call, values = DYNAMIC[name]
    body = call if "y" in call.split("=")[0] or "y =" in call else f"y = {call}"
    outputs = "float[A] y" + (", float[B] z" if "z =" in body or "y, z" in body else "")
    inputs, extra = f"float[2,3,4] x, int64[{len(values[0])}] p", {}
    if name == "Slice":
        inputs, extra = inputs + ", int64[2] q", {"q": np.array([2, 2**62])}
    proto = model(f"g ({inputs}) => ({outputs}) {{ {body} }}")
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    if name == "TopK":
        proto.graph.output[1].type.tensor_type.elem_type = 7
    if name == "ConstantOfShape":
        proto.graph.input.pop(0)
    feeds = [{"x": X, "p": np.array(value, "i8"), **extra} for value in values]
    if name == "ConstantOfShape":
        feeds = [{"p": feed["p"]} for feed in feeds]
    check(proto, *feeds)


@pytest.mark.parametrize("step", [1, 2, -1, -3])
def test_slice_with_everything_of_run_time(step: int) -> None:
    proto = model("""g (float[N, 7] x, int64[1] s, int64[1] e, int64[1] a, int64[1] k) => (float[A, B] y) {
        y = Slice(x, s, e, a, k)
    }""")
    feeds = [
        {"x": random(5, 7), "s": np.array([s]), "e": np.array([e]), "a": np.array([a]), "k": np.array([step])}
        for s, e, a in [(0, 4, 0), (-1, -9, 1), (1, 99, -1), (3, 3, 0), (2**40, -(2**40), 1), (-2, 0, -2)]
    ]
    check(proto, *feeds)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("int64", (2, 9, 3)),
        ("int64", (5, -4, -2)),
        ("int64", (3, 3, 1)),
        ("int32", (7, 0, -1)),
        ("float", (0.5, 2, 0.25)),
    ],
)
def test_range_of_run_time(dtype: str, values: tuple[float, float, float]) -> None:
    proto = model(f"g ({dtype} a, {dtype} b, {dtype} c) => ({dtype}[N] y) {{ y = Range(a, b, c) }}")
    kind = {"float": "f4", "int64": "i8", "int32": "i4"}[dtype]
    check(proto, dict(zip("abc", (np.array(value, kind) for value in values), strict=True)))


def test_nonzero_and_compress() -> None:
    proto = model("""g (float[N, 4] x, bool[4] c) => (int64[2, K] i, float[N, L] y) {
        z = Relu(x)  i = NonZero(z)  y = Compress<axis = 1>(x, c)
    }""")
    conditions = [[True, False, True, True], [False] * 4]
    check(proto, *({"x": random(n, 4), "c": np.array(c)} for n in (1, 5) for c in conditions))


def test_bounds_of_clip_of_run_time() -> None:
    proto = model("g (float[N] x, float lo, float hi) => (float[N] y) { y = Clip(x, lo, hi) }")
    x = random(9)
    check(proto, *({"x": x, "lo": np.array(a, "f4"), "hi": np.array(b, "f4")} for a, b in [(-1, 1), (0.25, 0.5)]))


# --- types and refusals


@pytest.mark.parametrize("call", ["Exp(x)", "Softmax(x)", "MatMul(x, x)", "LayerNormalization(x, s)", "Add(x, x)"])
def test_half_floats(call: str) -> None:
    weights = {"s": np.ones(4, "f2")} if "s)" in call else {}
    proto = model(f"g (float16[4, 4] x) => (float16[4, 4] y) {{ y = {call} }}", 17, weights)
    check(proto, {"x": random(4, 4, dtype="f2")}, rtol=2**-9, atol=1e-3)


def test_powers_of_other_types() -> None:
    proto = model("""g (int64[4] a, float[4] b, int32[4] c) => (int64[4] x, float[4] y) {
        x = Pow(a, b)  y = Pow(b, c)
    }""")
    feeds = {"a": np.arange(4), "b": np.array([2, 1.5, 0.5, 2], "f4"), "c": np.array([-1, 0, 2, 3], "i4")}
    check(proto, feeds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y = Dropout(x, half, yes)", "training mode draws random numbers"),
        ('y = Resize<mode = "cubic", antialias = 1>(x, , two)', "antialias is not supported"),
        ("y = Transpose<perm = [0, 0]>(x)", "is not a permutation"),
        ("y = Concat<axis = 5>(x, x)", "axis 5 is outside a tensor of 2 dimensions"),
        ("y = Slice(x, z, z, z, z)", "a step is 0"),
        ("y = Conv(x, x)", "expected at least 3"),
        ("y = Cast<to = 8>(x)", "element type STRING"),
        ('z1 = Constant<value_string = "a">()  y = Identity(x)', "has no value, or one of strings"),
    ],
)
def test_refusals_name_the_node(text: str, message: str) -> None:
    constants = "<float half = {0.5}, bool yes = {1}, float[2] two = {2.0, 2.0}, int64[1] z = {0}>"
    proto = model(f"g (float[2, 2] x) => (float[2, 2] y) {constants} {{ {text} }}", 18)
    with pytest.raises(FrontendError, match=message) as caught:
        from_onnx(proto)
    assert str(caught.value).startswith(("y (", "z1 ("))
