"""Elementwise operators: unary functions, activations, binary operators with broadcasting, comparisons, where, cast.

A unary or binary operator is one line: `_unary` and `_binary` register it and return its public constructor.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.special

from pyvm.ir.expr import Call, Constant, Expr
from pyvm.ir.struct_info import StructInfo, TensorStructInfo, dtype_name
from pyvm.op.attributes import FLAG, NUMBER, SCALAR, TEXT, Kind
from pyvm.op.common import (
    ALL,
    BOOL,
    FLOAT,
    HALF,
    INTEGER,
    NUMERIC,
    SIGNED,
    TensorLike,
    as_expr,
    as_exprs,
    broadcast_infos,
    check_dtype,
    define,
    fail,
    lower_to_kernel,
    make_call,
    same_dtype,
    same_shape,
    tensor_info,
)
from pyvm.op.registry import KernelCall, Lowered, Op

# --- shared by unary operators ----------------------------------------------------------------------------------------


def _infer_unary(dtypes: frozenset[str], result: str | None) -> Callable[[Call], StructInfo]:
    """Same shape; the dtype of x, which must be in `dtypes`, or `result`."""

    def infer(call: Call) -> StructInfo:
        x = tensor_info(call, 0)
        check_dtype(call.op.name, "x", x, dtypes)
        return TensorStructInfo(x.shape, result or x.dtype, x.ndim)

    return infer


def _typed(fn: Callable[..., Any], result: str | None = None) -> Callable[..., np.ndarray]:
    """`fn` with its result in the dtype of the first argument (or `result`), computed at least in float32."""

    def evaluate(attrs: dict[str, Any], x: np.ndarray, *rest: Any) -> np.ndarray:
        wide = x.astype(np.float32) if x.dtype.name in HALF else x
        return np.asarray(fn(wide, *rest, **attrs)).astype(result or x.dtype, copy=False)

    return evaluate


def _dtype_words(dtypes: frozenset[str]) -> str:
    words = {FLOAT: "floats", NUMERIC: "numbers", INTEGER: "integers", BOOL: "bools", ALL: "any type"}
    return words.get(dtypes, "floats or signed integers")


def _named(constructor: Callable[..., Call], name: str, doc: str) -> None:
    constructor.__name__ = constructor.__qualname__ = name
    constructor.__doc__ = inspect.cleandoc(doc)


def _unary(
    name: str,
    fn: Callable[[np.ndarray], Any],
    dtypes: frozenset[str],
    formula: str,
    source: str = "",
    result: str | None = None,
) -> Callable[[TensorLike], Call]:
    """Register y = fn(x), elementwise; `dtypes`: what x may be; `result`: dtype of y, None for that of x."""

    lower = lower_to_kernel(name, () if result else (0,))
    op = define(name, _infer_unary(dtypes, result), _typed(fn, result), lower, operands=(1, 1))

    def constructor(x: TensorLike) -> Call:
        return make_call(op, [as_expr(x)])

    _named(
        constructor,
        name,
        f"""Elementwise {formula}.

        Parameters
        ----------
        x : tensor of {_dtype_words(dtypes)}, any shape

        Returns
        -------
        Call
            Tensor of the shape of `x`, {result or "same dtype"}.
        """
        + (f"\n        Source: {source}.\n        " if source else ""),
    )
    return constructor


# --- unary ------------------------------------------------------------------------------------------------------------


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + scipy.special.erf(x / np.sqrt(2)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x * x * x)))


def _hard_swish(x: np.ndarray) -> np.ndarray:
    return x * np.clip(x / 6 + 0.5, 0, 1)


relu = _unary("relu", lambda x: np.maximum(x, 0), NUMERIC, "max(x, 0)", "ONNX Relu")
abs = _unary("abs", np.abs, NUMERIC, "|x|", "ONNX Abs")
neg = _unary("neg", np.negative, FLOAT | SIGNED, "-x", "ONNX Neg")
sign = _unary("sign", np.sign, NUMERIC, "-1, 0 or 1", "ONNX Sign")
square = _unary("square", lambda x: x * x, NUMERIC, "x * x")
exp = _unary("exp", np.exp, FLOAT, "exp(x)", "ONNX Exp")
log = _unary("log", np.log, FLOAT, "log(x), natural", "ONNX Log")
sqrt = _unary("sqrt", np.sqrt, FLOAT, "sqrt(x)", "ONNX Sqrt")
rsqrt = _unary("rsqrt", lambda x: 1 / np.sqrt(x), FLOAT, "1 / sqrt(x)")
reciprocal = _unary("reciprocal", lambda x: 1 / x, FLOAT, "1 / x", "ONNX Reciprocal")
erf = _unary("erf", scipy.special.erf, FLOAT, "erf(x)", "ONNX Erf")
sigmoid = _unary("sigmoid", scipy.special.expit, FLOAT, "1 / (1 + exp(-x))", "ONNX Sigmoid")
tanh = _unary("tanh", np.tanh, FLOAT, "tanh(x)", "ONNX Tanh")
sin = _unary("sin", np.sin, FLOAT, "sin(x)", "ONNX Sin")
cos = _unary("cos", np.cos, FLOAT, "cos(x)", "ONNX Cos")
tan = _unary("tan", np.tan, FLOAT, "tan(x)", "ONNX Tan")
asin = _unary("asin", np.arcsin, FLOAT, "asin(x)", "ONNX Asin")
acos = _unary("acos", np.arccos, FLOAT, "acos(x)", "ONNX Acos")
atan = _unary("atan", np.arctan, FLOAT, "atan(x)", "ONNX Atan")
sinh = _unary("sinh", np.sinh, FLOAT, "sinh(x)", "ONNX Sinh")
cosh = _unary("cosh", np.cosh, FLOAT, "cosh(x)", "ONNX Cosh")
asinh = _unary("asinh", np.arcsinh, FLOAT, "asinh(x)", "ONNX Asinh")
acosh = _unary("acosh", np.arccosh, FLOAT, "acosh(x)", "ONNX Acosh")
atanh = _unary("atanh", np.arctanh, FLOAT, "atanh(x)", "ONNX Atanh")
floor = _unary("floor", np.floor, FLOAT, "the largest integer <= x", "ONNX Floor")
ceil = _unary("ceil", np.ceil, FLOAT, "the smallest integer >= x", "ONNX Ceil")
round = _unary("round", np.rint, FLOAT, "the nearest integer, halves to even", "ONNX Round")
softplus = _unary("softplus", _softplus, FLOAT, "log(1 + exp(x))", "ONNX Softplus")
softsign = _unary("softsign", lambda x: x / (1 + np.abs(x)), FLOAT, "x / (1 + |x|)", "ONNX Softsign")
gelu = _unary("gelu", _gelu, FLOAT, "x * Phi(x), by erf", "ONNX Gelu, approximate = none")
gelu_tanh = _unary("gelu_tanh", _gelu_tanh, FLOAT, "x * Phi(x), by tanh", "ONNX Gelu, approximate = tanh")
silu = _unary("silu", lambda x: x * scipy.special.expit(x), FLOAT, "x * sigmoid(x)", "ONNX Swish, alpha = 1")
mish = _unary("mish", lambda x: x * np.tanh(_softplus(x)), FLOAT, "x * tanh(softplus(x))", "ONNX Mish")
hard_swish = _unary("hard_swish", _hard_swish, FLOAT, "x * min(max(x / 6 + 1/2, 0), 1)", "ONNX HardSwish")
logical_not = _unary("logical_not", np.logical_not, BOOL, "not x", "ONNX Not")
bitwise_not = _unary("bitwise_not", np.bitwise_not, INTEGER, "inversion of all bits", "ONNX BitwiseNot")
is_nan = _unary("is_nan", np.isnan, FLOAT, "whether x is NaN", "ONNX IsNaN", result="bool")


# --- unary with attributes --------------------------------------------------------------------------------------------


def _with_attrs(name: str, fn: Callable[..., Any], attrs: dict[str, Kind], result: str | None = None) -> Op:
    """Register y = fn(x, **attrs), elementwise; the kernel takes `attrs` in this order."""

    def lower(call: Call) -> Lowered:
        values = [int(v) if isinstance(v, bool) else v for v in (call.attrs[a] for a in attrs)]
        return KernelCall(f"kernel.{name}", [*call.args, *values], () if result else (0,))

    return define(name, _infer_unary(FLOAT, result), _typed(fn, result), lower, operands=(1, 1), attrs=attrs)


_LEAKY_RELU = _with_attrs("leaky_relu", lambda x, alpha: np.where(x < 0, alpha * x, x), {"alpha": NUMBER})


def leaky_relu(x: TensorLike, alpha: float = 0.01) -> Call:
    """Elementwise x if x >= 0 else alpha * x.

    Parameters
    ----------
    x : tensor of floats, any shape
    alpha : float

    Source: ONNX LeakyRelu.
    """
    return make_call(_LEAKY_RELU, [as_expr(x)], {"alpha": float(alpha)})


_ELU = _with_attrs("elu", lambda x, alpha: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x), {"alpha": NUMBER})


def elu(x: TensorLike, alpha: float = 1.0) -> Call:
    """Elementwise x if x >= 0 else alpha * (exp(x) - 1).

    Parameters
    ----------
    x : tensor of floats, any shape
    alpha : float

    Source: ONNX Elu.
    """
    return make_call(_ELU, [as_expr(x)], {"alpha": float(alpha)})


def _evaluate_selu(x: np.ndarray, alpha: float, gamma: float) -> np.ndarray:
    return gamma * np.where(x <= 0, alpha * np.expm1(np.minimum(x, 0)), x)


_SELU = _with_attrs("selu", _evaluate_selu, {"alpha": NUMBER, "gamma": NUMBER})


def selu(x: TensorLike, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Call:
    """Elementwise gamma * (x if x > 0 else alpha * (exp(x) - 1)).

    Parameters
    ----------
    x : tensor of floats, any shape
    alpha, gamma : float

    Source: ONNX Selu.
    """
    return make_call(_SELU, [as_expr(x)], {"alpha": float(alpha), "gamma": float(gamma)})


def _evaluate_celu(x: np.ndarray, alpha: float) -> np.ndarray:
    return np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(x / alpha))


_CELU = _with_attrs("celu", _evaluate_celu, {"alpha": NUMBER})


def celu(x: TensorLike, alpha: float = 1.0) -> Call:
    """Elementwise max(0, x) + min(0, alpha * (exp(x / alpha) - 1)).

    Parameters
    ----------
    x : tensor of floats, any shape
    alpha : float
        Not 0.

    Source: ONNX Celu.
    """
    if alpha == 0:
        fail("celu", "alpha is 0, which divides x")
    return make_call(_CELU, [as_expr(x)], {"alpha": float(alpha)})


_HARD_SIGMOID = _with_attrs(
    "hard_sigmoid", lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1), {"alpha": NUMBER, "beta": NUMBER}
)


def hard_sigmoid(x: TensorLike, alpha: float = 0.2, beta: float = 0.5) -> Call:
    """Elementwise min(max(alpha * x + beta, 0), 1).

    Parameters
    ----------
    x : tensor of floats, any shape
    alpha, beta : float

    Source: ONNX HardSigmoid.
    """
    return make_call(_HARD_SIGMOID, [as_expr(x)], {"alpha": float(alpha), "beta": float(beta)})


_THRESHOLDED_RELU = _with_attrs(
    "thresholded_relu", lambda x, alpha: np.where(x > alpha, x, x.dtype.type(0)), {"alpha": NUMBER}
)


def thresholded_relu(x: TensorLike, alpha: float = 1.0) -> Call:
    """Elementwise x if x > alpha else 0.

    Parameters
    ----------
    x : tensor of floats, any shape
    alpha : float

    Source: ONNX ThresholdedRelu.
    """
    return make_call(_THRESHOLDED_RELU, [as_expr(x)], {"alpha": float(alpha)})


def _evaluate_shrink(x: np.ndarray, bias: float, lambd: float) -> np.ndarray:
    return np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, x.dtype.type(0)))


_SHRINK = _with_attrs("shrink", _evaluate_shrink, {"bias": NUMBER, "lambd": NUMBER})


def shrink(x: TensorLike, bias: float = 0.0, lambd: float = 0.5) -> Call:
    """Elementwise x + bias below -lambd, x - bias above lambd, 0 between.

    Parameters
    ----------
    x : tensor of floats, any shape
    bias, lambd : float

    Source: ONNX Shrink.
    """
    return make_call(_SHRINK, [as_expr(x)], {"bias": float(bias), "lambd": float(lambd)})


def _evaluate_is_inf(x: np.ndarray, detect_neg: bool, detect_pos: bool) -> np.ndarray:
    return (np.isneginf(x) & detect_neg) | (np.isposinf(x) & detect_pos)


_IS_INF = _with_attrs("is_inf", _evaluate_is_inf, {"detect_neg": FLAG, "detect_pos": FLAG}, "bool")


def is_inf(x: TensorLike, detect_neg: bool = True, detect_pos: bool = True) -> Call:
    """Elementwise whether x is an infinity of one of the signs asked for.

    Parameters
    ----------
    x : tensor of floats, any shape
    detect_neg, detect_pos : bool
        Whether minus and plus infinity count.

    Returns
    -------
    Call
        Tensor of bools of the shape of `x`.

    Source: ONNX IsInf.
    """
    return make_call(_IS_INF, [as_expr(x)], {"detect_neg": bool(detect_neg), "detect_pos": bool(detect_pos)})


def _evaluate_clip(attrs: dict[str, Any], x: np.ndarray) -> np.ndarray:
    # np.maximum and np.minimum let NaN through; min is applied last, so hi wins when lo > hi.
    lo, hi = attrs["lo"], attrs["hi"]
    if x.dtype.kind in "iu":
        limits = np.iinfo(x.dtype)
        lo = None if lo is None else min(max(math.ceil(lo), limits.min), limits.max)
        hi = None if hi is None else min(max(math.floor(hi), limits.min), limits.max)
    result = x.copy()
    if lo is not None:
        result = np.maximum(result, np.asarray(lo, x.dtype))
    if hi is not None:
        result = np.minimum(result, np.asarray(hi, x.dtype))
    return result


def _lower_clip(call: Call) -> Lowered:
    return KernelCall("kernel.clip", [call.args[0], call.attrs["lo"], call.attrs["hi"]], (0,))


_CLIP = define(
    "clip",
    _infer_unary(NUMERIC, None),
    _evaluate_clip,
    _lower_clip,
    attrs={"lo": SCALAR.or_none(), "hi": SCALAR.or_none()},
)


def clip(x: TensorLike, lo: TensorLike | None = None, hi: TensorLike | None = None) -> Call:
    """Elementwise min(max(x, lo), hi); NaN stays NaN, and `hi` wins when lo > hi.

    Parameters
    ----------
    x : tensor of numbers, any shape
    lo, hi : number, one-element tensor or None
        Bounds; None does not bound. A bound known only at run time becomes `maximum` or `minimum`.

    Source: ONNX Clip.
    """
    x = as_expr(x)
    low, high = _clip_bound(lo), _clip_bound(hi)
    if not isinstance(low, Expr) and not isinstance(high, Expr):
        return make_call(_CLIP, [x], {"lo": low, "hi": high})
    call = maximum(x, low) if low is not None else x
    call = minimum(call, high) if high is not None else call
    assert isinstance(call, Call)
    return call


def _clip_bound(value: TensorLike | None) -> int | float | Expr | None:
    """`value` as a Python number if it is known, else the expression; None stays None."""
    if isinstance(value, Constant):
        value = value.data
    if value is None or isinstance(value, Expr):
        return value
    array = np.asarray(value)
    if array.size != 1:
        fail("clip", f"a bound has shape {array.shape}, expected one element")
    return array.reshape(()).item()


# --- binary -----------------------------------------------------------------------------------------------------------


def _infer_binary(dtypes: frozenset[str], result: str | None) -> Callable[[Call], StructInfo]:
    def infer(call: Call) -> StructInfo:
        infos = [tensor_info(call, 0), tensor_info(call, 1)]
        dtype = same_dtype(call.op.name, infos)
        for what, info in zip("ab", infos, strict=True):
            check_dtype(call.op.name, what, info, dtypes)
        return broadcast_infos(call.op.name, infos, result or dtype)

    return infer


def _lower_binary(call: Call) -> Lowered:
    return KernelCall(f"kernel.{call.op.name}", list(call.args), _same_as_result(call, (0, 1)))


def _same_as_result(call: Call, positions: Sequence[int]) -> tuple[int, ...]:
    """Those of the arguments at `positions` that are not broadcast: element i of the result needs their element i."""
    result = call.struct_info
    assert isinstance(result, TensorStructInfo)
    return tuple(i for i in positions if same_shape(tensor_info(call, i).shape, result.shape))


def _binary(
    name: str,
    fn: Callable[[np.ndarray, np.ndarray], Any],
    dtypes: frozenset[str],
    formula: str,
    source: str = "",
    result: str | None = None,
) -> Callable[[TensorLike, TensorLike], Call]:
    """Register y = fn(a, b) with broadcasting; a and b share a dtype in `dtypes`; `result`: dtype of y if another."""
    evaluate = _typed(lambda a, b: fn(a, b.astype(a.dtype, copy=False)), result)
    op = define(name, _infer_binary(dtypes, result), evaluate, _lower_binary, operands=(2, 2))

    def constructor(a: TensorLike, b: TensorLike) -> Call:
        return make_call(op, as_exprs(a, b))

    _named(
        constructor,
        name,
        f"""Elementwise {formula}.

        Parameters
        ----------
        a, b : tensor of {_dtype_words(dtypes)}, or a number
            Of one dtype; shapes broadcast as in numpy. A number takes the dtype of the other argument.

        Returns
        -------
        Call
            Tensor of the broadcast shape, {result or "same dtype"}.
        """
        + (f"\n        Source: {source}.\n        " if source else ""),
    )
    return constructor


def _div(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "f":
        return np.divide(a, b)
    quotient = np.floor_divide(a, b)
    round_up = (quotient * b != a) & ((a < 0) != (b < 0)) & (b != 0)
    return quotient + round_up.astype(a.dtype)


def _pow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "f":
        return np.power(a, b)
    # numpy refuses negative integer exponents: 1 / a ** -b is cut to 0 unless a is 1 or -1.
    unit = np.where(b % 2 == 0, np.abs(a), a)
    return np.where(b >= 0, np.power(a, np.maximum(b, 0)), np.where(np.abs(a) == 1, unit, 0))


add = _binary("add", np.add, NUMERIC, "a + b", "ONNX Add")
sub = _binary("sub", np.subtract, NUMERIC, "a - b", "ONNX Sub")
mul = _binary("mul", np.multiply, NUMERIC, "a * b", "ONNX Mul")
div = _binary("div", _div, NUMERIC, "a / b, for integers rounded towards zero", "ONNX Div")
floor_div = _binary("floor_div", np.floor_divide, NUMERIC, "floor(a / b)")
mod = _binary("mod", np.mod, NUMERIC, "a - b * floor(a / b), which has the sign of b", "ONNX Mod, fmod = 0")
fmod = _binary("fmod", np.fmod, NUMERIC, "a - b * trunc(a / b), which has the sign of a", "ONNX Mod, fmod = 1")
pow = _binary("pow", _pow, NUMERIC, "a to the power b", "ONNX Pow")
maximum = _binary("maximum", np.maximum, NUMERIC, "larger of a and b, NaN if either is", "ONNX Max")
minimum = _binary("minimum", np.minimum, NUMERIC, "smaller of a and b, NaN if either is", "ONNX Min")
prelu = _binary("prelu", lambda a, b: np.where(a < 0, b * a, a), FLOAT | SIGNED, "a if a >= 0 else b * a", "ONNX PRelu")
atan2 = _binary("atan2", np.arctan2, FLOAT, "angle of the point (b, a)")
bitwise_and = _binary("bitwise_and", np.bitwise_and, INTEGER, "a & b", "ONNX BitwiseAnd")
bitwise_or = _binary("bitwise_or", np.bitwise_or, INTEGER, "a | b", "ONNX BitwiseOr")
bitwise_xor = _binary("bitwise_xor", np.bitwise_xor, INTEGER, "a ^ b", "ONNX BitwiseXor")
left_shift = _binary("left_shift", np.left_shift, INTEGER, "a << b", "ONNX BitShift, direction = LEFT")
right_shift = _binary("right_shift", np.right_shift, INTEGER, "a >> b", "ONNX BitShift, direction = RIGHT")
equal = _binary("equal", np.equal, ALL, "a == b", "ONNX Equal", result="bool")
not_equal = _binary("not_equal", np.not_equal, ALL, "a != b", result="bool")
less = _binary("less", np.less, NUMERIC, "a < b", "ONNX Less", result="bool")
less_equal = _binary("less_equal", np.less_equal, NUMERIC, "a <= b", "ONNX LessOrEqual", result="bool")
greater = _binary("greater", np.greater, NUMERIC, "a > b", "ONNX Greater", result="bool")
greater_equal = _binary("greater_equal", np.greater_equal, NUMERIC, "a >= b", "ONNX GreaterOrEqual", result="bool")
logical_and = _binary("logical_and", np.logical_and, BOOL, "a and b", "ONNX And")
logical_or = _binary("logical_or", np.logical_or, BOOL, "a or b", "ONNX Or")
logical_xor = _binary("logical_xor", np.logical_xor, BOOL, "whether one of a and b holds", "ONNX Xor")


# --- where, cast ------------------------------------------------------------------------------------------------------


def _infer_where(call: Call) -> StructInfo:
    infos = [tensor_info(call, i) for i in range(3)]
    check_dtype("where", "cond", infos[0], BOOL)
    return broadcast_infos("where", infos, same_dtype("where", infos[1:]))


_WHERE = define(
    "where",
    _infer_where,
    lambda attrs, cond, a, b: np.where(cond, a, b),
    lambda call: KernelCall("kernel.where", list(call.args), _same_as_result(call, (1, 2))),
)


def where(cond: TensorLike, a: TensorLike, b: TensorLike) -> Call:
    """Elementwise a if cond else b, with broadcasting.

    Parameters
    ----------
    cond : tensor of bools
    a, b : tensor of one dtype, or a number
        A number takes the dtype of the other one.

    Source: ONNX Where.
    """
    return make_call(_WHERE, [as_expr(cond, "bool"), *as_exprs(a, b)])


def _infer_cast(call: Call) -> StructInfo:
    x = tensor_info(call, 0)
    check_dtype("cast", "x", x, ALL)
    return TensorStructInfo(x.shape, call.attrs["dtype"], x.ndim)


_CAST = define("cast", _infer_cast, lambda attrs, x: x.astype(attrs["dtype"]), attrs={"dtype": TEXT})


def cast(x: TensorLike, dtype: str) -> Call:
    """`x` converted to `dtype`: floats to integers by truncation, numbers to bool by comparison with 0.

    Parameters
    ----------
    x : tensor, any shape
    dtype : str
        bool, an integer or a floating point type.

    Source: ONNX Cast; floats outside the range of an integer type give unspecified values.
    """
    name = dtype_name(dtype)
    if name not in ALL:
        fail("cast", f"cannot convert to {name}")
    return make_call(_CAST, [as_expr(x)], {"dtype": name})
