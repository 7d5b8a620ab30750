"""The operator cases: how a call is built, concrete inputs, symbolic shapes, and what ONNX or numpy says of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyvm import op
from pyvm.ir import Expr, SymVar
from pyvm.op.create import arange as arange_of


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes
    ----------
    id : str
        Name of the test.
    build : callable
        Makes the expression from one expression per input.
    inputs : sequence of array
    symbolic : sequence of str
        Dims of each input, integers or names: "n,3"; empty where the case is static only.
    onnx : str, optional
        ONNX operator with the same result.
    extra : sequence of array
        Constant inputs of the ONNX node after `inputs`; None for an absent one.
    attrs : dict
        Attributes of the ONNX node.
    oracle : callable, optional
        The result by numpy, where there is no ONNX operator.
    tolerance : float
        Relative and absolute, for floats.
    """

    id: str
    build: Callable[..., Any]
    inputs: Sequence[np.ndarray]
    symbolic: Sequence[str] = ()
    onnx: str | None = None
    extra: Sequence[np.ndarray | None] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    oracle: Callable[..., Any] | None = None
    tolerance: float = 2e-6

    def dims(self) -> tuple[list[tuple[int | SymVar, ...]], dict[SymVar, int]]:
        """Symbolic shape of every input, and the size of every symbol."""
        shapes: list[tuple[int | SymVar, ...]] = []
        sizes: dict[SymVar, int] = {}
        for text, array in itertools.zip_longest(self.symbolic, self.inputs, fillvalue=""):
            names = [name.strip() for name in text.split(",")] if text else [str(d) for d in array.shape]
            shapes.append(tuple(int(n) if n.isdigit() else SymVar(n) for n in names))
            for dim, size in zip(shapes[-1], array.shape, strict=True):
                if isinstance(dim, SymVar):
                    sizes[dim] = size
        return shapes, sizes


CASES: list[Case] = []
_rng = np.random.default_rng(20)


def case(id: str, build: Callable[..., Any], *inputs: np.ndarray, **options: Any) -> None:
    sym = options.pop("sym", ())
    inputs = tuple(map(np.asarray, inputs))
    CASES.append(Case(id, build, inputs, (sym,) if isinstance(sym, str) else sym, **options))


def f(*shape: int, dtype: str = "float32", low: float = -2.0, high: float = 2.0) -> np.ndarray:
    return _rng.uniform(low, high, shape).astype(dtype)


def i(*shape: int, dtype: str = "int64", low: int = -9, high: int = 9) -> np.ndarray:
    return _rng.integers(low, high, shape, endpoint=True).astype(dtype)


def b(*shape: int) -> np.ndarray:
    return _rng.integers(0, 1, shape, endpoint=True).astype(bool)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


_SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 88.0, -88.0], np.float32)

# --- unary ------------------------------------------------------------------------------------------------------------

_UNARY_ONNX = {
    "relu": "Relu",
    "abs": "Abs",
    "neg": "Neg",
    "sign": "Sign",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "reciprocal": "Reciprocal",
    "erf": "Erf",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "sin": "Sin",
    "cos": "Cos",
    "tan": "Tan",
    "asin": "Asin",
    "acos": "Acos",
    "atan": "Atan",
    "sinh": "Sinh",
    "cosh": "Cosh",
    "asinh": "Asinh",
    "acosh": "Acosh",
    "atanh": "Atanh",
    "floor": "Floor",
    "ceil": "Ceil",
    "round": "Round",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "gelu": "Gelu",
    "mish": "Mish",
    "hard_swish": "HardSwish",
}
_DOMAIN = {"log": (0.1, 3), "sqrt": (0, 3), "asin": (-1, 1), "acos": (-1, 1), "atanh": (-0.9, 0.9), "acosh": (1, 4)}

for _name, _onnx in _UNARY_ONNX.items():
    _low, _high = _DOMAIN.get(_name, (-3, 3))
    case(_name, getattr(op, _name), f(2, 3, 5, low=_low, high=_high), sym="n,3,m", onnx=_onnx, tolerance=5e-6)
for _name in ("relu", "abs", "sign", "floor", "ceil", "round", "sigmoid", "tanh", "softplus", "exp", "erf"):
    case(f"{_name}-special", getattr(op, _name), _SPECIAL, onnx=_UNARY_ONNX[_name], tolerance=5e-6)
for _name in ("abs", "neg", "sign", "relu"):
    case(f"{_name}-int32", getattr(op, _name), i(4, 3, dtype="int32"), onnx=_UNARY_ONNX[_name])
case("rsqrt", op.rsqrt, f(7, low=0.1, high=3), oracle=lambda x: 1 / np.sqrt(x))
case("square", op.square, f(2, 7), oracle=lambda x: x * x)
case("square-int64", op.square, i(2, 7), oracle=lambda x: x * x)
case("gelu_tanh", op.gelu_tanh, f(2, 9), onnx="Gelu", attrs={"approximate": "tanh"}, tolerance=5e-6)
case("silu", op.silu, f(2, 9), oracle=lambda x: x / (1 + np.exp(-x)), tolerance=5e-6)
case("exp-float64", op.exp, f(5, dtype="float64"), onnx="Exp", tolerance=1e-14)
case("tanh-float16", op.tanh, f(5, dtype="float16"), oracle=np.tanh, tolerance=2e-3)
case("relu-scalar", op.relu, f(), onnx="Relu")
case("relu-empty", op.relu, f(0, 3), oracle=lambda x: x)
case("logical_not", op.logical_not, b(3, 4), sym="n,4", onnx="Not")
case("bitwise_not", op.bitwise_not, i(3, 4, dtype="int16"), onnx="BitwiseNot")
case("is_nan", op.is_nan, _SPECIAL, onnx="IsNaN")
case("is_inf", op.is_inf, _SPECIAL, onnx="IsInf")
case("is_inf-neg", lambda x: op.is_inf(x, detect_pos=False), _SPECIAL, onnx="IsInf", attrs={"detect_positive": 0})
case("leaky_relu", lambda x: op.leaky_relu(x, 0.3), f(3, 4), sym="n,4", onnx="LeakyRelu", attrs={"alpha": 0.3})
case("elu", lambda x: op.elu(x, 1.5), f(3, 4), onnx="Elu", attrs={"alpha": 1.5})
case("selu", op.selu, f(3, 4), onnx="Selu")
case("celu", lambda x: op.celu(x, 0.7), f(3, 4), onnx="Celu", attrs={"alpha": 0.7})
case("hard_sigmoid", op.hard_sigmoid, f(3, 4, low=-5, high=5), onnx="HardSigmoid")
case("thresholded_relu", lambda x: op.thresholded_relu(x, 0.6), f(9), onnx="ThresholdedRelu", attrs={"alpha": 0.6})
case("shrink", lambda x: op.shrink(x, 0.2, 0.9), f(9), onnx="Shrink", attrs={"bias": 0.2, "lambd": 0.9})
case("clip", lambda x: op.clip(x, -1, 0.5), f(3, 4), sym="n,4", onnx="Clip", extra=[np.float32(-1), np.float32(0.5)])
case("clip-hi", lambda x: op.clip(x, hi=1), i(9, dtype="int32"), onnx="Clip", extra=[None, np.int32(1)])
case("clip-nan", lambda x: op.clip(x, -1, 6), _SPECIAL, oracle=lambda x: np.clip(x, -1, 6))
case("clip-crossed", lambda x: op.clip(x, 2, 1), f(5), oracle=lambda x: np.ones_like(x))
case("clip-run-time", lambda x, lo: op.clip(x, lo, 1.0), f(9), np.float32(-0.5), oracle=lambda x, lo: np.clip(x, lo, 1))

# --- binary -----------------------------------------------------------------------------------------------------------

for _name in ("add", "sub", "mul", "div", "maximum", "minimum"):
    _fn, _onnx = getattr(op, _name), {"maximum": "Max", "minimum": "Min"}.get(_name, _name.title())
    case(_name, getattr(op, _name), f(2, 3, 4), f(2, 3, 4), sym=("n,3,4", "n,3,4"), onnx=_onnx)
    case(f"{_name}-broadcast", getattr(op, _name), f(2, 1, 4), f(3, 1), sym=("n,1,4", "m,1"), onnx=_onnx)
    _b = i(5, low=1, high=4)
    case(f"{_name}-int64", getattr(op, _name), i(5), np.where(b(5), _b, -_b), onnx=_onnx)
    case(f"{_name}-scalar", lambda x, fn=_fn: fn(x, 2), f(3), onnx=_onnx, extra=[np.float32([2])])
case("add-float16", op.add, f(3, 4, dtype="float16"), f(4, dtype="float16"), oracle=np.add, tolerance=1e-3)
case("add-uint8", op.add, i(9, dtype="uint8", low=0, high=255), i(9, dtype="uint8", low=0, high=255), oracle=np.add)
_b = np.where(b(9), 3, -4).astype(np.int32)
case("floor_div", op.floor_div, i(9, dtype="int32"), _b, oracle=np.floor_divide)
case("floor_div-float", op.floor_div, f(9), f(9, low=0.5, high=1), oracle=np.floor_divide)
case("mod", op.mod, i(9, dtype="int32"), _b, onnx="Mod")
case("mod-float", op.mod, f(9), f(9, low=0.5, high=1), oracle=np.mod)
case("fmod", op.fmod, i(9, dtype="int32"), _b, onnx="Mod", attrs={"fmod": 1})
case("fmod-float", op.fmod, f(9), f(9), onnx="Mod", attrs={"fmod": 1}, tolerance=1e-5)
case("pow", op.pow, f(3, 4, low=0.1, high=3), f(4), sym=("n,4", "4"), onnx="Pow", tolerance=5e-6)
case("pow-int64", op.pow, i(3, 4), i(4, low=0, high=4), onnx="Pow")
case(
    "pow-negative",
    op.pow,
    ints(2, 1, -1, -1, 3, -5),
    ints(-1, -3, -3, -2, -2, -3),
    oracle=lambda a, b: ints(0, 1, -1, 1, 0, 0),
)
case("prelu", op.prelu, f(2, 3, 4), f(3, 1), sym=("n,3,m", "3,1"), onnx="PRelu")
case("atan2", op.atan2, f(3, 4), f(3, 4), oracle=np.arctan2)
for _name, _onnx in {"bitwise_and": "BitwiseAnd", "bitwise_or": "BitwiseOr", "bitwise_xor": "BitwiseXor"}.items():
    case(_name, getattr(op, _name), i(3, 4, dtype="int32"), i(4, dtype="int32"), onnx=_onnx)
for _name, _way in {"left_shift": "LEFT", "right_shift": "RIGHT"}.items():
    case(
        _name,
        getattr(op, _name),
        i(9, dtype="uint32", low=0),
        i(9, dtype="uint32", low=0, high=5),
        onnx="BitShift",
        attrs={"direction": _way},
    )
for _name, _onnx in {
    "equal": "Equal",
    "less": "Less",
    "less_equal": "LessOrEqual",
    "greater": "Greater",
    "greater_equal": "GreaterOrEqual",
}.items():
    case(_name, getattr(op, _name), f(3, 4), f(4), sym=("n,m", "m"), onnx=_onnx)
    case(f"{_name}-int64", getattr(op, _name), i(20, high=3, low=0), i(20, high=3, low=0), onnx=_onnx)
case("equal-bool", op.equal, b(9), b(9), onnx="Equal")
case("not_equal", op.not_equal, i(9, low=0, high=1), i(9, low=0, high=1), oracle=np.not_equal)
for _name, _onnx in {"logical_and": "And", "logical_or": "Or", "logical_xor": "Xor"}.items():
    case(_name, getattr(op, _name), b(3, 4), b(4), sym=("n,4", "4"), onnx=_onnx)
case("where", op.where, b(3, 4), f(4), f(3, 1), sym=("n,4", "4", "n,1"), onnx="Where")
_weights = f(5, 33)
case(
    "linear",
    lambda x, r: op.linear(x, _weights, np.ones(33, np.float32), r, "leaky_relu", (0.25,)),
    f(2, 3, 5),
    f(2, 3, 33),
    sym=("n,3,5", "n,3,33"),
    oracle=lambda x, r: np.where((y := x @ _weights + 1 + r) < 0, np.float32(0.25) * y, y),
    tolerance=5e-6,
)
case(
    "fused_elementwise",
    lambda x, y, c: op.fused_elementwise("mul(x0, x1); add(t0, 0.5); tanh(t1); where(x2, t2, x0)", x, y, c),
    f(3, 4),
    f(4),
    b(3, 1),
    sym=("n,4", "4", "n,1"),
    oracle=lambda x, y, c: np.where(c, np.tanh(x * y + np.float32(0.5)), x),
    tolerance=5e-6,
)
case(
    "fused_elementwise-int32",
    lambda x: op.fused_elementwise("mul(x0, 3); cast(t0, dtype=float32); clip(t1, lo=-4.0, hi=None)", x),
    i(4, 3, dtype="int32"),
    oracle=lambda x: np.maximum((x * 3).astype(np.float32), -4),
)
case("where-int64", op.where, b(4), i(4), i(4), onnx="Where")
for _to in ("float64", "int32", "uint8", "bool"):
    case(
        f"cast-{_to}",
        lambda x, to=_to: op.cast(x, to),
        f(3, 4, low=0, high=200),
        sym="n,4",
        oracle=lambda x, to=_to: x.astype(to),
    )
case("cast-from-bool", lambda x: op.cast(x, "float32"), b(5), oracle=lambda x: x.astype(np.float32))
case("cast-float16", lambda x: op.cast(x, "float16"), f(5), oracle=lambda x: x.astype(np.float16))

# --- reductions -------------------------------------------------------------------------------------------------------

_REDUCTIONS = {
    "sum": "ReduceSum",
    "mean": "ReduceMean",
    "max": "ReduceMax",
    "min": "ReduceMin",
    "prod": "ReduceProd",
    "l1": "ReduceL1",
    "l2": "ReduceL2",
    "sum_square": "ReduceSumSquare",
    "log_sum": "ReduceLogSum",
    "log_sum_exp": "ReduceLogSumExp",
}
for _name, _onnx in _REDUCTIONS.items():
    _fn = getattr(op, f"reduce_{_name}")
    case(
        f"reduce_{_name}",
        lambda x, fn=_fn: fn(x, (0, 2)),
        f(2, 3, 4, low=0.1),
        sym="n,3,m",
        onnx=_onnx,
        extra=[ints(0, 2)],
        attrs={"keepdims": 0},
        tolerance=5e-6,
    )
    case(
        f"reduce_{_name}-keepdims",
        lambda x, fn=_fn: fn(x, -1, True),
        f(2, 3, 4, low=0.1),
        sym="n,3,m",
        onnx=_onnx,
        extra=[ints(-1)],
        attrs={"keepdims": 1},
        tolerance=5e-6,
    )
    case(
        f"reduce_{_name}-all",
        lambda x, fn=_fn: fn(x),
        f(2, 3, low=0.1),
        sym="n,m",
        onnx=_onnx,
        attrs={"keepdims": 0},
        tolerance=5e-6,
    )
for _name in ("sum", "max", "min", "prod", "mean"):
    _fn = getattr(op, f"reduce_{_name}")
    case(
        f"reduce_{_name}-int64",
        lambda x, fn=_fn: fn(x, 0),
        i(2, 3) * 2,
        onnx=_REDUCTIONS[_name],
        extra=[ints(0)],
        attrs={"keepdims": 0},
    )
case("reduce_sum-none", lambda x: op.reduce_sum(x, ()), f(2, 3), oracle=lambda x: x)
case("reduce_max-empty", lambda x: op.reduce_max(x, 0), f(0, 3), oracle=lambda x: np.full(3, -np.inf, np.float32))
case("reduce_max-bool", lambda x: op.reduce_max(x, 1), b(3, 4), oracle=lambda x: x.any(1))
case("reduce_min-bool", lambda x: op.reduce_min(x, 1), b(3, 2), oracle=lambda x: x.all(1))
case(
    "reduce_sum-float16",
    lambda x: op.reduce_sum(x, 1),
    f(3, 9, dtype="float16"),
    oracle=lambda x: x.sum(1),
    tolerance=1e-2,
)
case("reduce_all", lambda x: op.reduce_all(x, 1), b(6, 2), sym="n,2", oracle=lambda x: x.all(1))
case("reduce_any", lambda x: op.reduce_any(x, 1), b(6, 2), oracle=lambda x: x.any(1))
for _name, _onnx in {"argmax": "ArgMax", "argmin": "ArgMin"}.items():
    _fn = getattr(op, _name)
    case(_name, lambda x, fn=_fn: fn(x, 1), f(3, 4), sym="n,4", onnx=_onnx, attrs={"axis": 1, "keepdims": 0})
    case(
        f"{_name}-last",
        lambda x, fn=_fn: fn(x, -1, True, True),
        i(5, 9, low=0, high=2, dtype="int32"),
        onnx=_onnx,
        attrs={"axis": -1, "keepdims": 1, "select_last_index": 1},
    )
for _exclusive, _reverse in itertools.product((0, 1), repeat=2):
    case(
        f"cumsum-{_exclusive}{_reverse}",
        lambda x, e=_exclusive, r=_reverse: op.cumsum(x, -1, e, r),
        f(2, 5),
        sym="n,m",
        onnx="CumSum",
        extra=[ints(-1)[0]],
        attrs={"exclusive": _exclusive, "reverse": _reverse},
    )

# --- linear algebra ---------------------------------------------------------------------------------------------------

for _a, _b2, _sa, _sb in (
    ((3, 4), (4, 5), "n,k", "k,5"),
    ((4,), (4, 5), "k", "k,5"),
    ((3, 4), (4,), "n,4", "4"),
    ((4,), (4,), "k", "k"),
    ((2, 1, 3, 4), (6, 4, 2), "b,1,n,4", "6,4,2"),
    ((2, 3, 4), (4, 5), "b,n,4", "4,5"),
    ((4,), (2, 4, 3), "4", "b,4,m"),
):
    case(f"matmul-{len(_a)}d-{len(_b2)}d", op.matmul, f(*_a), f(*_b2), sym=(_sa, _sb), onnx="MatMul")
case("matmul-int32", op.matmul, i(3, 4, dtype="int32"), i(4, 2, dtype="int32"), oracle=np.matmul)
case("matmul-float64", op.matmul, f(3, 4, dtype="float64"), f(4, 2, dtype="float64"), oracle=np.matmul, tolerance=1e-13)
case("matmul-float16", op.matmul, f(3, 4, dtype="float16"), f(4, 2, dtype="float16"), oracle=np.matmul, tolerance=1e-2)
case("matmul-empty", op.matmul, f(3, 0), f(0, 2), oracle=np.matmul)
case("gemm", op.gemm, f(3, 4), f(4, 5), f(5), sym=("n,4", "4,5", "5"), onnx="Gemm")
case(
    "gemm-all",
    lambda a, b, c: op.gemm(a, b, c, 0.5, 2.0, True, True),
    f(4, 3),
    f(5, 4),
    f(3, 1),
    sym=("4,n", "5,4", "n,1"),
    onnx="Gemm",
    attrs={"alpha": 0.5, "beta": 2.0, "transA": 1, "transB": 1},
)
case(
    "gemm-int32",
    lambda a, b, c: op.gemm(a, b, c, beta=2.0),
    i(3, 4, dtype="int32"),
    i(4, 2, dtype="int32"),
    i(2, dtype="int32"),
    oracle=lambda a, b, c: a @ b + 2 * c,
)
case("gemm-no-c", lambda a, b: op.gemm(a, b, trans_b=True), f(3, 4), f(5, 4), onnx="Gemm", attrs={"transB": 1})
case(
    "matmul_integer",
    op.matmul_integer,
    i(3, 4, dtype="uint8", low=0),
    i(4, 5, dtype="uint8", low=0),
    np.uint8(3),
    np.uint8(7),
    sym=("n,4", "4,5"),
    onnx="MatMulInteger",
)
case(
    "matmul_integer-per-row-and-column",
    op.matmul_integer,
    i(3, 4, dtype="uint8", low=0),
    i(4, 5, dtype="int8"),
    i(3, dtype="uint8", low=0),
    i(5, dtype="int8"),
    sym=("n,4", "4,m", "n", "m"),
    oracle=lambda a, b, p, q: ((a.astype(np.int32) - p[:, None]) @ (b.astype(np.int32) - q)).astype(np.int32),
)
case(
    "matmul_integer-no-zero",
    op.matmul_integer,
    i(2, 3, 4, dtype="uint8", low=0),
    i(4, 5, dtype="int8"),
    onnx="MatMulInteger",
)
for _eq, _shapes, _sym in (
    ("ij,jk->ik", [(2, 3), (3, 4)], ("n,3", "3,m")),
    ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)], ("b,3,n,5", "b,3,m,5")),
    ("ij->ji", [(2, 3)], ("n,m",)),
    ("ij->i", [(2, 3)], ("n,3",)),
    ("i,j->ij", [(2,), (3,)], ("n", "m")),
    ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)], ("b,n,4", "b,4,5")),
    ("ij,ij->", [(2, 3), (2, 3)], ("n,3", "n,3")),
    ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)], ("n,3", "3,4", "4,5")),
    ("bij,bj->bi", [(2, 3, 4), (2, 4)], ("b,3,4", "b,4")),
    ("ij,j", [(2, 3), (3,)], ("n,3", "3")),
    ("abc,cd->dab", [(2, 3, 4), (4, 5)], ("n,3,4", "4,5")),
):
    case(
        f"einsum-{_eq}",
        lambda *xs, eq=_eq: op.einsum(eq, *xs),
        *(f(*s) for s in _shapes),
        sym=_sym,
        onnx="Einsum",
        attrs={"equation": _eq},
        tolerance=5e-6,
    )

case("einsum-empty", lambda *x: op.einsum("bij,bjk->bik", *x), f(2, 0, 3), f(2, 3, 4), oracle=np.matmul)

# --- convolution, pooling ---------------------------------------------------------------------------------------------


def _onnx_window(**attrs: Any) -> dict[str, Any]:
    names = {"kernel": "kernel_shape", "trans": "", "p": "p"}
    return {names.get(k, k): list(v) if isinstance(v, tuple) else v for k, v in attrs.items()}


for _id, _x, _w, _options, _sym in (
    ("2d", (2, 3, 7, 8), (4, 3, 3, 3), {}, "n,3,h,w"),
    ("padded", (1, 3, 7, 8), (4, 3, 3, 2), {"strides": (2, 1), "pads": (1, 0, 2, 1)}, "n,3,h,w"),
    ("dilated", (1, 2, 9, 9), (4, 2, 3, 3), {"dilations": (2, 3), "strides": (1, 2), "pads": (1, 1, 1, 1)}, "1,2,h,w"),
    ("grouped", (2, 4, 5, 5), (6, 2, 3, 3), {"group": 2, "pads": (1, 1, 1, 1)}, "n,4,5,5"),
    ("depthwise", (1, 4, 6, 6), (4, 1, 3, 3), {"group": 4, "strides": (2, 2)}, "1,4,h,h"),
    ("1x1", (2, 3, 4, 5), (6, 3, 1, 1), {}, "n,3,h,w"),
    ("1d", (2, 3, 9), (4, 3, 3), {"strides": (2,), "pads": (1, 1)}, "n,3,l"),
    ("3d", (1, 2, 4, 5, 4), (3, 2, 2, 3, 2), {"pads": (0, 1, 0, 0, 1, 1)}, "n,2,d,h,w"),
):
    case(
        f"conv-{_id}",
        lambda x, w, o=_options: op.conv(x, w, **o),
        f(*_x),
        f(*_w),
        sym=(_sym,),
        onnx="Conv",
        attrs=_onnx_window(**_options),
        tolerance=1e-5,
    )
case(
    "conv-bias",
    lambda x, w, c: op.conv(x, w, c, pads=1),
    f(1, 3, 4, 4),
    f(2, 3, 3, 3),
    f(2),
    sym=("n,3,4,4",),
    onnx="Conv",
    attrs={"pads": [1, 1, 1, 1]},
    tolerance=1e-5,
)
case(
    "conv-relu",
    lambda x, w, c: op.conv(x, w, c, activation="relu"),
    f(1, 3, 4, 4),
    f(2, 3, 2, 2),
    f(2),
    sym=("n,3,4,4",),
    oracle=lambda x, w, c: np.maximum(_conv_2d(x, w) + c[:, None, None], 0),
    tolerance=1e-5,
)


def _conv_2d(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    return np.einsum("nchwij,mcij->nmhw", windows, w)


for _id, _x, _w, _options, _sym in (
    ("2d", (2, 3, 4, 5), (3, 2, 3, 3), {}, "n,3,h,w"),
    (
        "strided",
        (1, 3, 4, 5),
        (3, 2, 3, 2),
        {"strides": (2, 3), "pads": (1, 0, 1, 1), "output_padding": (1, 2)},
        "n,3,h,w",
    ),
    ("grouped", (1, 4, 4, 4), (4, 3, 2, 2), {"group": 2, "strides": (2, 2)}, "1,4,h,w"),
    ("dilated", (1, 2, 4, 4), (2, 2, 2, 2), {"dilations": (2, 3)}, "n,2,h,w"),
    ("1d", (2, 3, 5), (3, 2, 3), {"strides": (2,)}, "n,3,l"),
):
    case(
        f"conv_transpose-{_id}",
        lambda x, w, o=_options: op.conv_transpose(x, w, **o),
        f(*_x),
        f(*_w),
        sym=(_sym,),
        onnx="ConvTranspose",
        attrs=_onnx_window(**_options),
        tolerance=1e-5,
    )
case(
    "conv_transpose-bias",
    lambda x, w, c: op.conv_transpose(x, w, c, strides=2),
    f(1, 2, 3, 3),
    f(2, 3, 2, 2),
    f(3),
    onnx="ConvTranspose",
    attrs={"strides": [2, 2]},
    tolerance=1e-5,
)

_WINDOWS: list[tuple[str, tuple[int, ...], dict[str, Any], str]] = [
    ("2d", (2, 3, 7, 8), {"kernel": (3, 2), "strides": (2, 2)}, "n,c,h,w"),
    ("padded", (1, 2, 7, 8), {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}, "n,2,h,w"),
    ("1d", (2, 3, 9), {"kernel": (3,), "strides": (2,), "pads": (1, 0)}, "n,3,l"),
    ("3d", (1, 2, 4, 5, 4), {"kernel": (2, 2, 2), "strides": (2, 1, 2)}, "n,2,d,h,w"),
    ("ceil", (1, 2, 7, 8), {"kernel": (3, 3), "strides": (2, 2), "ceil_mode": 1}, "n,2,h,w"),
    (
        "ceil-padded",
        (1, 2, 6, 9),
        {"kernel": (2, 2), "strides": (2, 2), "pads": (1, 1, 1, 1), "ceil_mode": 1},
        "n,2,h,w",
    ),
    ("ceil-wide", (1, 1, 5, 6), {"kernel": (1, 2), "strides": (3, 4), "ceil_mode": 1}, "n,1,h,w"),
    ("dilated", (1, 2, 9, 8), {"kernel": (3, 2), "dilations": (2, 3), "pads": (1, 0, 1, 1)}, "n,2,h,w"),
]
for _id, _x, _options, _sym in _WINDOWS:
    _attrs = _onnx_window(**_options)
    case(f"max_pool-{_id}", lambda x, o=_options: op.max_pool(x, **o), f(*_x), sym=_sym, onnx="MaxPool", attrs=_attrs)
    case(
        f"lp_pool-{_id}",
        lambda x, o=_options: op.lp_pool(x, p=3, **o),
        f(*_x),
        sym=_sym,
        onnx=None if "ceil_mode" in _options else "LpPool",
        attrs={**_attrs, "p": 3},
        tolerance=1e-5,
    )
    for _count in (0, 1):
        case(
            f"avg_pool-{_id}-{_count}",
            lambda x, o=_options, c=_count: op.avg_pool(x, count_include_pad=bool(c), **o),
            f(*_x),
            sym=_sym,
            onnx="AveragePool",
            attrs={**_attrs, "count_include_pad": _count},
            tolerance=5e-6,
        )
    if "dilations" not in _options:
        for _order in (0, 1):
            case(
                f"max_pool_with_indices-{_id}-{_order}",
                lambda x, o=_options, s=_order: op.max_pool_with_indices(x, storage_order=s, **o),
                f(*_x),
                sym=_sym,
                onnx="MaxPool",
                attrs={**_attrs, "storage_order": _order},
            )
case(
    "max_pool-int8",
    lambda x: op.max_pool(x, (2, 2)),
    i(1, 2, 4, 4, dtype="int8"),
    onnx="MaxPool",
    attrs={"kernel_shape": [2, 2]},
)
case(
    "max_pool-float16",
    lambda x: op.max_pool(x, (2, 2)),
    f(1, 2, 4, 4, dtype="float16"),
    oracle=lambda x: np.lib.stride_tricks.sliding_window_view(x, (2, 2), axis=(2, 3)).max((-1, -2)),
)
case("global_avg_pool", op.global_avg_pool, f(2, 3, 4, 5), sym="n,3,h,w", onnx="GlobalAveragePool")
case("global_max_pool", op.global_max_pool, f(2, 3, 4), sym="n,3,l", onnx="GlobalMaxPool")
case(
    "global_lp_pool",
    lambda x: op.global_lp_pool(x, 3),
    f(2, 3, 4, 5),
    sym="n,3,h,w",
    onnx="GlobalLpPool",
    attrs={"p": 3},
    tolerance=5e-6,
)

# --- normalization ----------------------------------------------------------------------------------------------------

for _name, _onnx in {"softmax": "Softmax", "log_softmax": "LogSoftmax", "hardmax": "Hardmax"}.items():
    case(_name, getattr(op, _name), f(3, 4, 5, high=9), sym="n,4,m", onnx=_onnx, tolerance=5e-6)
    _fn = getattr(op, _name)
    case(f"{_name}-axis", lambda x, fn=_fn: fn(x, 1), f(3, 4, 5), onnx=_onnx, attrs={"axis": 1})
case(
    "softmax-float16",
    op.softmax,
    f(3, 4, dtype="float16"),
    sym="n,4",
    tolerance=2e-3,
    oracle=lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
)
case(
    "layer_norm",
    lambda x, s, c: op.layer_norm(x, s, c, eps=1e-3),
    f(2, 3, 8),
    f(8),
    f(8),
    sym=("n,m,8",),
    onnx="LayerNormalization",
    attrs={"epsilon": 1e-3},
    tolerance=5e-6,
)
case(
    "layer_norm-axis",
    lambda x, s: op.layer_norm(x, s, axis=1),
    f(2, 3, 4),
    f(3, 4),
    sym=("n,3,4",),
    onnx="LayerNormalization",
    attrs={"axis": 1},
    tolerance=5e-6,
)
case(
    "rms_norm",
    op.rms_norm,
    f(2, 3, 8),
    f(8),
    sym=("n,m,8",),
    tolerance=5e-6,
    oracle=lambda x, s: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * s,
)
case(
    "batch_norm",
    lambda *a: op.batch_norm(*a, eps=1e-3),
    f(2, 3, 4, 5),
    f(3),
    f(3),
    f(3),
    f(3, low=0.5),
    sym=("n,3,h,w",),
    onnx="BatchNormalization",
    attrs={"epsilon": 1e-3},
    tolerance=5e-6,
)
case(
    "batch_norm-2d", op.batch_norm, f(5, 3), f(3), f(3), f(3), f(3, low=0.5), onnx="BatchNormalization", tolerance=5e-6
)
case(
    "instance_norm",
    op.instance_norm,
    f(2, 3, 4, 5),
    f(3),
    f(3),
    sym=("n,3,h,w",),
    onnx="InstanceNormalization",
    tolerance=1e-5,
)
case(
    "group_norm",
    lambda x, s, c: op.group_norm(x, s, c, 2),
    f(2, 4, 3, 3),
    f(4),
    f(4),
    sym=("n,4,h,w",),
    onnx="GroupNormalization",
    attrs={"num_groups": 2},
    tolerance=1e-5,
)
case(
    "lrn",
    lambda x: op.lrn(x, 3, 2e-2, 0.5, 2.0),
    f(2, 5, 3, 3),
    sym="n,5,h,w",
    onnx="LRN",
    attrs={"size": 3, "alpha": 2e-2, "beta": 0.5, "bias": 2.0},
    tolerance=5e-6,
)
case("lrn-even", lambda x: op.lrn(x, 4), f(1, 6, 2, 2), tolerance=5e-6, oracle=lambda x: _lrn(x, 4, 1e-4, 0.75, 1.0))


def _lrn(x: np.ndarray, size: int, alpha: float, beta: float, bias: float) -> np.ndarray:
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        window = x[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1]
        y[:, c] = x[:, c] / (bias + alpha / size * (window**2).sum(1)) ** beta
    return y


for _p in (1, 2):
    case(
        f"lp_norm-{_p}",
        lambda x, p=_p: op.lp_norm(x, 1, p),
        f(3, 4, 2),
        sym="n,4,m",
        onnx="LpNormalization",
        attrs={"axis": 1, "p": _p},
        tolerance=5e-6,
    )
case(
    "mean_variance_normalization",
    op.mean_variance_normalization,
    f(2, 3, 4, 4),
    sym="n,3,h,w",
    onnx="MeanVarianceNormalization",
    tolerance=1e-5,
)

# --- movement ---------------------------------------------------------------------------------------------------------

case(
    "transpose",
    lambda x: op.transpose(x, (2, 0, 1)),
    f(2, 3, 4),
    sym="n,3,m",
    onnx="Transpose",
    attrs={"perm": [2, 0, 1]},
)
case("transpose-reverse", op.transpose, i(2, 3, dtype="int8"), onnx="Transpose")
case(
    "concat",
    lambda *xs: op.concat(xs, 1),
    f(2, 3),
    f(2, 1),
    f(2, 2),
    sym=("n,m", "n,1", "n,k"),
    onnx="Concat",
    attrs={"axis": 1},
)
case("concat-bool", lambda *xs: op.concat(xs, -2), b(2, 3), b(1, 3), onnx="Concat", attrs={"axis": -2})
for _id, _begins, _ends, _steps, _axes, _sym in (
    ("plain", (1, 0), (3, -1), (1, 1), (0, 2), "n,3,m"),
    ("step", (0, 1), (5, 9), (2, 2), (0, 2), "n,3,m"),
    ("reverse", (-1,), (-(2**63),), (-1,), (0,), "n,3,7"),
    ("reverse-part", (4, 5), (0, -7), (-2, -1), (0, 2), "n,3,7"),
    ("to-end", (1,), (2**63 - 1,), (1,), (2,), "n,3,m"),
    ("first", (0, 0), (1, 1), (1, 1), (0, 2), "n,3,m"),
    ("beyond", (-100, 2), (100, 100), (1, 3), (0, 2), "n,3,m"),
    ("empty", (3,), (2,), (1,), (2,), "n,3,7"),
):
    case(
        f"strided_slice-{_id}",
        lambda x, a=(_begins, _ends, _steps, _axes): op.strided_slice(x, *a),
        f(5, 3, 7),
        sym=_sym,
        onnx="Slice",
        extra=[ints(*_begins), ints(*_ends), ints(*_axes), ints(*_steps)],
    )
case(
    "split",
    lambda x: tuple(op.split(x, (2, 1, 3), -1)),
    f(2, 6),
    sym="n,6",
    onnx="Split",
    extra=[ints(2, 1, 3)],
    attrs={"axis": -1},
)
case("split-even", lambda x: tuple(op.split(x, 3)), f(6, 2), sym="6,m", onnx="Split", attrs={"num_outputs": 3})
case("split-uneven", lambda x: tuple(op.split(x, 3)), f(7, 2), sym="n,m", onnx="Split", attrs={"num_outputs": 3})
case("broadcast_to", lambda x: op.broadcast_to(x, (2, 4, 3)), f(4, 1), oracle=lambda x: np.broadcast_to(x, (2, 4, 3)))
case("expand", lambda x: op.expand(x, (2, 1, 3)), f(4, 1), sym="n,1", onnx="Expand", extra=[ints(2, 1, 3)])
case(
    "tile",
    lambda x: op.tile(x, (2, 1, 3)),
    i(2, 3, 2, dtype="int16"),
    sym="n,3,m",
    oracle=lambda x: np.tile(x, (2, 1, 3)),
)
for _mode in ("constant", "reflect", "edge", "wrap"):
    case(
        f"pad-{_mode}",
        lambda x, m=_mode: op.pad(x, (1, 2, 0, 2), m),
        f(3, 4),
        sym="n,m",
        onnx="Pad",
        extra=[ints(1, 2, 0, 2)],
        attrs={"mode": _mode},
    )
case(
    "pad-negative",
    lambda x: op.pad(x, (-1, 1, 1, -2), value=3.0),
    f(3, 4),
    sym="n,m",
    onnx="Pad",
    extra=[ints(-1, 1, 1, -2), np.float32(3)],
)
case(
    "pad-run-time-value",
    lambda x, v: op.pad(x, (1, 0, 0, 2), value=v),
    i(2, 3),
    np.int64(5),
    sym=("n,m",),
    oracle=lambda x, v: np.pad(x, [(1, 0), (0, 2)], constant_values=v),
)
case("copy", op.copy, f(2, 3), sym="n,3", onnx="Identity")
for _upper, _k in ((0, 0), (1, 1), (1, -2), (0, 5)):
    case(
        f"trilu-{_upper}-{_k}",
        lambda x, u=_upper, k=_k: op.trilu(x, k, u),
        f(2, 3, 4),
        sym="b,n,m",
        onnx="Trilu",
        extra=[ints(_k)[0]],
        attrs={"upper": _upper},
    )
for _mode in ("DCR", "CRD"):
    case(
        f"depth_to_space-{_mode}",
        lambda x, m=_mode: op.depth_to_space(x, 2, m),
        f(2, 8, 2, 3),
        sym="n,8,h,w",
        onnx="DepthToSpace",
        attrs={"blocksize": 2, "mode": _mode},
    )
case(
    "space_to_depth",
    lambda x: op.space_to_depth(x, 2),
    f(2, 2, 4, 6),
    sym="n,2,4,6",
    onnx="SpaceToDepth",
    attrs={"blocksize": 2},
)
for _batch in (0, 1):
    case(
        f"reverse_sequence-{_batch}",
        lambda x, n, a=_batch: op.reverse_sequence(x, n, a, 1 - a),
        f(4, 4, 2),
        ints(1, 4, 2, 3),
        sym=("4,4,m",),
        onnx="ReverseSequence",
        attrs={"batch_axis": _batch, "time_axis": 1 - _batch},
    )

# --- index ------------------------------------------------------------------------------------------------------------

case(
    "gather",
    lambda x, n: op.gather(x, n, 1),
    f(3, 4, 2),
    ints(0, -1, 2),
    sym=("n,4,2", "k"),
    onnx="Gather",
    attrs={"axis": 1},
)
case("gather-scalar", op.gather, f(3, 4), ints(-2)[0], onnx="Gather")
case("gather-int32", op.gather, i(5), i(2, 3, dtype="int32", low=-5, high=4), sym=("n", "a,b"), onnx="Gather")
case(
    "gather_elements",
    lambda x, n: op.gather_elements(x, n, 1),
    f(3, 4),
    i(2, 5, low=-4, high=3),
    sym=("n,4", "k,5"),
    onnx="GatherElements",
    attrs={"axis": 1},
)
case("gather_nd", op.gather_nd, f(3, 4, 2), i(5, 2, low=-3, high=2), sym=("n,4,2", "k,2"), onnx="GatherND")
case(
    "gather_nd-batch",
    lambda x, n: op.gather_nd(x, n, 1),
    f(3, 4, 2),
    i(3, 1, low=-4, high=3),
    sym=("n,4,2", "n,1"),
    onnx="GatherND",
    attrs={"batch_dims": 1},
)
for _mode in ("none", "add", "mul", "max", "min"):
    _unique = np.stack([_rng.permutation(4)[:2] for _ in range(3)])
    case(
        f"scatter_elements-{_mode}",
        lambda x, n, u, m=_mode: op.scatter_elements(x, n, u, 1, m),
        f(3, 4),
        _unique if _mode == "none" else i(3, 2, low=-4, high=3),
        f(3, 2),
        sym=("n,4", "n,2", "n,2"),
        onnx="ScatterElements",
        attrs={"axis": 1, "reduction": _mode},
    )
    case(
        f"scatter_nd-{_mode}",
        lambda x, n, u, m=_mode: op.scatter_nd(x, n, u, m),
        f(5, 3),
        ints(3, -5).reshape(2, 1) if _mode == "none" else i(4, 1, low=-5, high=4),
        f(2 if _mode == "none" else 4, 3),
        sym=("n,3", "k,1", "k,3"),
        onnx="ScatterND",
        attrs={"reduction": _mode},
    )
for _axis in (-1, 0, 1):
    case(
        f"one_hot-{_axis}",
        lambda n, a=_axis: op.one_hot(n, 5, np.float32(2), np.float32(7), a),
        i(3, 4, low=-6, high=6),
        sym="n,m",
        onnx="OneHot",
        extra=[ints(5)[0], np.float32([2, 7])],
        attrs={"axis": _axis},
    )
for _largest in (0, 1):
    case(
        f"topk-{_largest}",
        lambda x, v=_largest: op.topk(x, 3, 1, bool(v)),
        f(4, 6),
        sym="n,6",
        onnx="TopK",
        extra=[ints(3)],
        attrs={"axis": 1, "largest": _largest},
    )
case("topk-ties", lambda x: op.topk(x, 4), i(3, 8, low=0, high=2), onnx="TopK", extra=[ints(4)])
_mask = i(3, 4, low=-1, high=1)
case("nonzero", lambda x: op.nonzero(x, int(np.count_nonzero(_mask))), _mask, sym="n,4", onnx="NonZero")
case("nonzero_count", op.nonzero_count, f(3, 4), sym="n,4", oracle=np.count_nonzero)

# --- create -----------------------------------------------------------------------------------------------------------

case("fill", lambda: op.fill((2, 3), 1.5, "float64"), oracle=lambda: np.full((2, 3), 1.5))
case("fill-bool", lambda: op.fill((3,), True, "bool"), oracle=lambda: np.ones(3, bool))
case("fill-uint64", lambda: op.fill((3,), np.uint64(2**64 - 1)), oracle=lambda: np.full(3, 2**64 - 1, np.uint64))
case("fill-tensor", lambda v: op.fill((2, 2), v), np.int32(7), oracle=lambda v: np.full((2, 2), 7, np.int32))
case(
    "fill-like",
    lambda x: op.fill(x.struct_info.shape, -1, "int64"),
    f(2, 3),
    sym="n,m",
    oracle=lambda x: np.full((2, 3), -1),
)
for _args in ((5,), (2, 9, 3), (9, 2, -2), (3, 3), (4, 1), (0.5, 3.0, 0.7), (-2.0, -5.0, -1.5)):
    case(f"arange-{_args}", lambda a=_args: op.arange(*a), oracle=lambda a=_args: _float32(np.arange(*a)))
case(
    "arange-symbolic",
    lambda x: arange_of(1, x.struct_info.shape[0], 3, "int32"),
    f(9),
    sym="n",
    oracle=lambda x: np.arange(1, 9, 3, dtype=np.int32),
)


def _float32(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if x.dtype == np.float64 else x


for _k in (-1, 0, 2):
    case(f"eye-{_k}", lambda k=_k: op.eye(3, 4, k, "int32"), oracle=lambda k=_k: np.eye(3, 4, k, np.int32))

# --- resize -----------------------------------------------------------------------------------------------------------

_SCALES = np.array([1, 1, 1.5, 2.5], np.float32)
for _coordinates in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"):
    for _mode in ("nearest", "linear", "cubic"):
        case(
            f"resize-{_mode}-{_coordinates}",
            lambda x, m=_mode, c=_coordinates: op.resize(x, scales=_SCALES, mode=m, coordinate_mode=c),
            f(1, 2, 4, 5),
            sym="n,2,h,w",
            onnx="Resize",
            extra=[None, _SCALES],
            tolerance=1e-5,
            attrs={"mode": _mode, "coordinate_transformation_mode": _coordinates},
        )
for _rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
    case(
        f"resize-{_rounding}",
        lambda x, r=_rounding: op.resize(x, (1, 1, 3, 8), nearest_mode=r),
        f(1, 1, 5, 4),
        onnx="Resize",
        extra=[None, None, ints(1, 1, 3, 8)],
        attrs={"mode": "nearest", "nearest_mode": _rounding},
    )
case(
    "resize-down",
    lambda x: op.resize(x, (1, 1, 3, 2), mode="cubic"),
    f(1, 1, 6, 5),
    onnx="Resize",
    extra=[None, None, ints(1, 1, 3, 2)],
    attrs={"mode": "cubic"},
    tolerance=1e-5,
)

# --- shape ------------------------------------------------------------------------------------------------------------

case("reshape", lambda x: op.reshape(x, (0, -1)), f(2, 3, 4), sym="n,3,m", onnx="Reshape", extra=[ints(0, -1)])
case("reshape-merge", lambda x: op.reshape(x, (-1, 4)), f(2, 3, 4), sym="n,3,4", onnx="Reshape", extra=[ints(-1, 4)])
case(
    "reshape-empty",
    lambda x: op.reshape(x, (0, 2), allow_zero=True),
    f(0, 3),
    onnx="Reshape",
    extra=[ints(0, 2)],
    attrs={"allowzero": 1},
)
case("squeeze", op.squeeze, f(1, 3, 1), sym="1,n,1", onnx="Squeeze")
case("squeeze-axes", lambda x: op.squeeze(x, -1), f(1, 3, 1), sym="n,3,1", onnx="Squeeze", extra=[ints(-1)])
case("unsqueeze", lambda x: op.unsqueeze(x, (0, -1)), f(2, 3), sym="n,3", onnx="Unsqueeze", extra=[ints(0, -1)])
for _axis in (0, 1, 2, 3, -1):
    case(
        f"flatten-{_axis}",
        lambda x, a=_axis: op.flatten(x, a),
        f(2, 3, 4),
        sym="n,3,m",
        onnx="Flatten",
        attrs={"axis": _axis},
    )
case("size", op.size, f(2, 3), sym="n,m", onnx="Size")
case("shape_to_tensor", lambda x: op.shape_to_tensor(op.shape_of(x)), f(2, 3), sym="n,m", onnx="Shape")
case("tensor_to_shape", op.tensor_to_shape, ints(3, 4), oracle=lambda x: (3, 4))
case("tensor_scalar", op.tensor_scalar, ints(7), oracle=lambda x: 7)


def leaves(expr: Expr | tuple[Expr, ...]) -> tuple[Expr, ...]:
    """What a case builds, as a tuple of expressions."""
    return expr if isinstance(expr, tuple) else (expr,)
