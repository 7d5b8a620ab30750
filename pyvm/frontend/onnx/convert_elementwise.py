"""Arithmetic, comparisons, logic, activations, Cast, Where, Clip: operators that work element by element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import zip_longest

from pyvm import op
from pyvm.frontend.onnx.node import Node
from pyvm.frontend.onnx.registry import Converter, ConverterTable
from pyvm.frontend.onnx.shape_values import larger
from pyvm.ir import Call, Expr, Prim, prove_equal

_COMPARISONS = frozenset({"equal", "less", "less_equal", "greater", "greater_equal"})

# --- broadcasting


def broadcast(node: Node, fn: Callable[..., Call], *operands: Expr) -> Expr:
    """`fn` of operands that broadcast.

    Where two symbolic dimensions meet, only the run time knows whether they are equal or one of them is 1. Operators
    refuse that; their kernels do not, and check the shapes they get.
    """
    dims = broadcast_dims(node, [node.shape(x) for x in operands])
    if dims is None:
        return fn(*operands)
    name = fn.__name__
    return node.kernel(name, operands, dims, "bool" if name in _COMPARISONS else node.dtype(operands[-1]))


def broadcast_dims(node: Node, shapes: Sequence[Sequence[Prim]]) -> list[Prim] | None:
    """What the shapes broadcast to, with new symbols where that is not certain; None if all of it is certain."""
    target = [_winner(dims) for dims in zip_longest(*(shape[::-1] for shape in shapes), fillvalue=1)][::-1]
    if None not in target:
        return None
    dims: list[Prim] = []
    for axis, winner in zip(range(-len(target), 0), target, strict=True):
        if winner is None:
            largest = reduce(larger, [shape[axis] for shape in shapes if -axis <= len(shape)])
            (winner,) = node.name_values([largest], nonnegative=True)
        dims.append(winner)
    return dims


def _winner(dims: Sequence[Prim]) -> Prim | None:
    """The size that dimensions broadcast to; None if it cannot be told. Conflicts are for the operator to explain."""
    others = [dim for dim in dims if dim != 1]
    first = others[0] if others else 1
    return first if all(prove_equal(first, dim) is not None for dim in others) else None


def _aligned(node: Node) -> tuple[Expr, Expr]:
    """Inputs of a binary operator before opset 7, when only the second one was broadcast, and on request."""
    a, b = node.tensor(0), node.tensor(1)
    if node.opset >= 7 or not node.attr("broadcast", 0):
        return a, b
    shape, ndim = node.shape(b), node.ndim(a)
    if node.has_attr("axis") and shape:
        axis = node.axis(node.attr("axis"), ndim)
        b = node.reshape(b, (*shape, *(1,) * (ndim - axis - len(shape))))
    return a, b


def _binary(fn: Callable[[Expr, Expr], Call]) -> Converter:
    return lambda node: broadcast(node, fn, *_aligned(node))


def _variadic(fn: Callable[[Expr, Expr], Call]) -> Converter:
    def convert(node: Node) -> Expr:
        first, *rest = node.tensors()
        for x in rest:
            first = node.emit(broadcast(node, fn, first, x))
        return first

    return convert


def _mean(node: Node) -> Expr:
    total = _variadic(op.add)(node)
    assert isinstance(total, Expr)
    return op.div(total, node.scalar_like(node.n_inputs, total))


def _pow(node: Node) -> Expr:
    base, exponent = _aligned(node)
    dtype = node.dtype(base)
    if dtype.startswith(("int", "uint")) and node.dtype(exponent).startswith("float"):
        # 2 ** 0.5 is computed as a float and then truncated to the type of the base.
        return op.cast(node.emit(broadcast(node, op.pow, node.cast(base, node.dtype(exponent)), exponent)), dtype)
    return broadcast(node, op.pow, base, node.cast(exponent, dtype))


def _mod(node: Node) -> Expr:
    return broadcast(node, op.fmod if node.attr("fmod", 0) else op.mod, node.tensor(0), node.tensor(1))


def _bit_shift(node: Node) -> Expr:
    direction = node.attr("direction")
    if direction not in ("LEFT", "RIGHT"):
        raise node.error(f"direction must be LEFT or RIGHT, got {direction!r}")
    shift = op.left_shift if direction == "LEFT" else op.right_shift
    return broadcast(node, shift, node.tensor(0), node.tensor(1))


def _prelu(node: Node) -> Expr:
    x, slope = node.tensor(0), node.tensor(1)
    shape = node.shape(slope)
    if node.opset < 7 and len(shape) == 1 and shape[0] != 1:
        # One slope per channel, before slopes were broadcast like everything else.
        slope = node.reshape(slope, (shape[0], *(1,) * (node.ndim(x) - 2)))
    return broadcast(node, op.prelu, x, slope)


# --- unary


def _unary(fn: Callable[[Expr], Call]) -> Converter:
    return lambda node: fn(node.tensor(0))


def _with_attrs(fn: Callable[..., Call], **defaults: float) -> Converter:
    """Attributes of the node become keyword arguments of the same names."""
    return lambda node: fn(node.tensor(0), **{name: node.attr(name, value) for name, value in defaults.items()})


def _gelu(node: Node) -> Expr:
    return (op.gelu_tanh if node.attr("approximate", "none") == "tanh" else op.gelu)(node.tensor(0))


def _swish(node: Node) -> Expr:
    x, alpha = node.tensor(0), node.attr("alpha", 1.0)
    if alpha == 1.0:
        return op.silu(x)
    return op.mul(x, node.emit(op.sigmoid(node.emit(op.mul(x, node.scalar_like(alpha, x))))))


def _is_inf(node: Node) -> Expr:
    negative, positive = node.attr("detect_negative", 1), node.attr("detect_positive", 1)
    return op.is_inf(node.tensor(0), detect_neg=bool(negative), detect_pos=bool(positive))


def _identity(node: Node) -> Expr:
    return node.tensor(0)


# --- Clip, Cast, Where


def _clip_by_attributes(node: Node) -> Expr:
    x = node.tensor(0)
    return op.clip(x, *(node.attr(name) if node.has_attr(name) else None for name in ("min", "max")))


def _clip(node: Node) -> Expr:
    x = node.tensor(0)
    bounds = [node.optional(i) for i in (1, 2)]
    return op.clip(x, *(bound if bound is None else node.reshape(bound, ()) for bound in bounds))


def _cast_by_name(node: Node) -> Expr:
    # Before opset 6 the type was written as text, "FLOAT".
    from onnx import TensorProto

    from pyvm.frontend.onnx.model_file import element_type

    name = node.attr("to")
    code = TensorProto.DataType.Value(name) if isinstance(name, str) else name
    return node.cast(node.tensor(0), element_type(code, f"{node.source}: attribute 'to'"))


def _cast(node: Node) -> Expr:
    return node.cast(node.tensor(0), node.dtype_attr("to"))


def _cast_like(node: Node) -> Expr:
    return node.cast(node.tensor(0), node.dtype(node.name_of(1)))


def _where(node: Node) -> Expr:
    return broadcast(node, op.where, *node.tensors())


def _inference_dropout(node: Node, mask_dtype: str) -> list[Expr | None]:
    """Dropout when nothing is trained: the input, and a mask that keeps everything."""
    x = node.tensor(0)
    if not node.wants(1):
        return [x]
    return [x, node.emit(op.fill(node.shape(x), 1, mask_dtype))]


def _dropout_1(node: Node) -> list[Expr | None]:
    return _inference_dropout(node, node.dtype(node.tensor(0)))


def _dropout_10(node: Node) -> list[Expr | None]:
    return _inference_dropout(node, "bool")


def _dropout_12(node: Node) -> list[Expr | None]:
    if node.has(2):
        training = node.constant(2)
        if training is None or bool(training.reshape(())):
            ratio = node.constant(1)
            if ratio is None or float(ratio.reshape(())) != 0.0:
                raise node.error("training mode draws random numbers; only inference is supported")
    return _inference_dropout(node, "bool")


def _since_1(table: dict[str, Converter]) -> ConverterTable:
    return {name: {1: converter} for name, converter in table.items()}


CONVERTERS: ConverterTable = {
    **_since_1(
        {
            "Abs": _unary(op.abs),
            "Acos": _unary(op.acos),
            "Acosh": _unary(op.acosh),
            "Asin": _unary(op.asin),
            "Asinh": _unary(op.asinh),
            "Atan": _unary(op.atan),
            "Atanh": _unary(op.atanh),
            "BitwiseNot": _unary(op.bitwise_not),
            "Ceil": _unary(op.ceil),
            "Cos": _unary(op.cos),
            "Cosh": _unary(op.cosh),
            "Erf": _unary(op.erf),
            "Exp": _unary(op.exp),
            "Floor": _unary(op.floor),
            "HardSwish": _unary(op.hard_swish),
            "IsNaN": _unary(op.is_nan),
            "Log": _unary(op.log),
            "Mish": _unary(op.mish),
            "Neg": _unary(op.neg),
            "Not": _unary(op.logical_not),
            "Reciprocal": _unary(op.reciprocal),
            "Relu": _unary(op.relu),
            "Round": _unary(op.round),
            "Sigmoid": _unary(op.sigmoid),
            "Sign": _unary(op.sign),
            "Sin": _unary(op.sin),
            "Sinh": _unary(op.sinh),
            "Softplus": _unary(op.softplus),
            "Softsign": _unary(op.softsign),
            "Sqrt": _unary(op.sqrt),
            "Tan": _unary(op.tan),
            "Tanh": _unary(op.tanh),
            "Celu": _with_attrs(op.celu, alpha=1.0),
            "Elu": _with_attrs(op.elu, alpha=1.0),
            "HardSigmoid": _with_attrs(op.hard_sigmoid, alpha=0.2, beta=0.5),
            "LeakyRelu": _with_attrs(op.leaky_relu, alpha=0.01),
            "Shrink": _with_attrs(op.shrink, bias=0.0, lambd=0.5),
            "ThresholdedRelu": _with_attrs(op.thresholded_relu, alpha=1.0),
            "Add": _binary(op.add),
            "And": _binary(op.logical_and),
            "BitwiseAnd": _binary(op.bitwise_and),
            "BitwiseOr": _binary(op.bitwise_or),
            "BitwiseXor": _binary(op.bitwise_xor),
            "Div": _binary(op.div),
            "Equal": _binary(op.equal),
            "Greater": _binary(op.greater),
            "GreaterOrEqual": _binary(op.greater_equal),
            "Less": _binary(op.less),
            "LessOrEqual": _binary(op.less_equal),
            "Mul": _binary(op.mul),
            "Or": _binary(op.logical_or),
            "Sub": _binary(op.sub),
            "Xor": _binary(op.logical_xor),
            "Max": _variadic(op.maximum),
            "Min": _variadic(op.minimum),
            "Sum": _variadic(op.add),
            "Mean": _mean,
            "BitShift": _bit_shift,
            "CastLike": _cast_like,
            "Gelu": _gelu,
            "Identity": _identity,
            "IsInf": _is_inf,
            "Mod": _mod,
            "PRelu": _prelu,
            "Pow": _pow,
            "Swish": _swish,
            "Where": _where,
        }
    ),
    "Cast": {1: _cast_by_name, 6: _cast},
    "Clip": {1: _clip_by_attributes, 11: _clip},
    "Dropout": {1: _dropout_1, 10: _dropout_10, 12: _dropout_12},
    # Opset 1 rounded the constants to four digits.
    "Selu": {
        1: _with_attrs(op.selu, alpha=1.6732, gamma=1.0507),
        6: _with_attrs(op.selu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    },
}

__all__ = ["CONVERTERS", "broadcast", "broadcast_dims"]
