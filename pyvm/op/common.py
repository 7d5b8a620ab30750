"""Helpers that every family shares: struct info, broadcasting, axes, conversion of Python values, registration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from pyvm.ir.builder import BlockBuilder, infer_call
from pyvm.ir.expr import Call, Constant, Expr, PrimValue, ShapeExpr, Tuple, TupleGetItem
from pyvm.ir.prim import Prim, PrimExpr, bounds, free_vars, prove_equal, substitute
from pyvm.ir.struct_info import ShapeStructInfo, StructInfo, TensorStructInfo, TupleStructInfo
from pyvm.op.attributes import Kind
from pyvm.op.registry import Decompose, KernelCall, Lowered, Op, register_op
from vmcore.arguments import shown
from vmcore.errors import ArgumentTypeError, ArgumentValueError, CompileError

Shape = tuple[Prim, ...]
TensorLike = Expr | np.ndarray | int | float | bool | PrimExpr

HALF = frozenset({"float16", "bfloat16"})
FLOAT = HALF | {"float32", "float64"}
SIGNED = frozenset({"int8", "int16", "int32", "int64"})
UNSIGNED = frozenset({"uint8", "uint16", "uint32", "uint64"})
INTEGER = SIGNED | UNSIGNED
BOOL = frozenset({"bool"})
NUMERIC = FLOAT | INTEGER
ALL = NUMERIC | BOOL
INDEX = frozenset({"int32", "int64"})


# --- errors and printing ----------------------------------------------------------------------------------------------


def fail(op: str, message: str) -> NoReturn:
    """Raise the CompileError of operator `op`."""
    raise CompileError(f"{op}: {message}")


def show_shape(shape: Sequence[Prim] | None) -> str:
    """`(2, n, 3)`, or `(?)` for an unknown shape."""
    if shape is None:
        return "(?)"
    return "(" + ", ".join(str(d) for d in shape) + ")"


# --- arguments of a call ----------------------------------------------------------------------------------------------


def tensor_info(call: Call, index: int) -> TensorStructInfo:
    """Struct info of argument `index`, which must be a tensor."""
    info = call.args[index].struct_info
    if not isinstance(info, TensorStructInfo):
        fail(call.op.name, f"argument {index} must be a tensor, got {info}")
    return info


def check_dtype(op: str, what: str, info: TensorStructInfo, allowed: frozenset[str]) -> None:
    """Raise unless the dtype of `info` is in `allowed` or unknown."""
    if info.dtype is not None and info.dtype not in allowed:
        fail(op, f"{what} has dtype {info.dtype}, expected one of {', '.join(sorted(allowed))}")


def check_ndim(op: str, what: str, info: TensorStructInfo, ndim: int, *, at_least: bool = False) -> None:
    """Raise unless the rank of `info` is `ndim` (or more, with `at_least`) or unknown."""
    if info.ndim == -1 or info.ndim == ndim or (at_least and info.ndim > ndim):
        return
    bound = f"at least {ndim}" if at_least else str(ndim)
    fail(op, f"{what} has {info.ndim} dimensions {show_shape(info.shape)}, expected {bound}")


def same_dtype(op: str, infos: Sequence[TensorStructInfo]) -> str | None:
    """The dtype that all of `infos` share; None if no one knows."""
    dtypes = {info.dtype for info in infos if info.dtype is not None}
    if len(dtypes) > 1:
        listed = ", ".join(str(info.dtype) for info in infos)
        fail(op, f"arguments have different dtypes ({listed}); cast them first")
    return next(iter(dtypes), None)


def shape_arg(call: Call, index: int) -> Shape | None:
    """Values of the shape argument `index`; None if they are not known at compile time."""
    arg = call.args[index]
    if isinstance(arg, ShapeExpr):
        return tuple(arg.values)
    info = arg.struct_info
    if not isinstance(info, ShapeStructInfo):
        fail(call.op.name, f"argument {index} must be a shape, got {info}")
    return None if info.values is None else tuple(info.values)


def shape_arg_ndim(call: Call, index: int) -> int:
    """Length of the shape argument `index`; -1 if unknown."""
    values = shape_arg(call, index)
    if values is not None:
        return len(values)
    info = call.args[index].struct_info
    assert isinstance(info, ShapeStructInfo)
    return info.ndim


def known_tensor(x: Expr) -> TensorStructInfo | None:
    """Struct info of `x` if it is already inferred and a tensor."""
    info = x.struct_info
    return info if isinstance(info, TensorStructInfo) else None


def known_ndim(x: Expr) -> int:
    """Rank of `x`; -1 if unknown."""
    info = known_tensor(x)
    return -1 if info is None else info.ndim


def require_ndim(op: str, x: Expr) -> int:
    """Rank of `x`, which must be known."""
    ndim = known_ndim(x)
    if ndim < 0:
        fail(op, f"the rank of the argument must be known, got {x.struct_info}")
    return ndim


def require_shape(op: str, x: Expr) -> Shape:
    """Shape of `x`, which must be known (symbolic dims are)."""
    info = known_tensor(x)
    if info is None or info.shape is None:
        fail(op, f"the shape of the argument must be known, got {x.struct_info}")
    return tuple(info.shape)


def require_dtype(op: str, x: Expr) -> str:
    """Dtype of `x`, which must be known."""
    info = known_tensor(x)
    if info is None or info.dtype is None:
        fail(op, f"the dtype of the argument must be known, got {x.struct_info}")
    return info.dtype


# --- dims -------------------------------------------------------------------------------------------------------------


def same_dim(a: Prim, b: Prim) -> bool | None:
    """Whether two dims are equal; None if that cannot be decided."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return prove_equal(a, b)


def same_shape(a: Shape | None, b: Shape | None) -> bool:
    """Whether two shapes are known and provably equal."""
    if a is None or b is None or len(a) != len(b):
        return False
    return all(same_dim(x, y) for x, y in zip(a, b, strict=True))


def product(dims: Iterable[Prim]) -> Prim:
    """Number of elements of a tensor with these dims."""
    result: Prim = 1
    for d in dims:
        result = d if isinstance(result, int) and result == 1 else result * d
    return result


def is_positive(dim: Prim) -> bool:
    """Whether `dim` is at least 1, given that every symbolic dimension of the program is.

    An empty dimension that a symbol takes at run time is then refused by the kernel's range check, not miscomputed.
    """
    if isinstance(dim, int):
        return dim >= 1
    low, _ = bounds(substitute(dim, {v: v + 1 for v in free_vars(dim) if v.nonnegative}))
    return low is not None and low >= 1


def at_least(a: Prim, b: Prim) -> bool:
    """Whether a >= b, given that every symbolic dimension of the program is at least 1."""
    return is_positive(a - b + 1)


def static_shape(shape: Shape | None) -> tuple[int, ...] | None:
    """`shape` if every dim is an integer, else None."""
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    return tuple(int(d) for d in shape)  # type: ignore[arg-type]


def broadcast_shapes(op: str, *shapes: Shape) -> Shape:
    """The shape that all `shapes` broadcast to, by numpy's rule.

    Raises
    ------
    CompileError
        If two dims differ, or cannot be proved equal and neither is the constant 1.
    """
    ndim = max((len(s) for s in shapes), default=0)
    result: list[Prim] = []
    for axis in range(-ndim, 0):
        dim: Prim = 1
        for shape in shapes:
            if len(shape) < -axis:
                continue
            d = shape[axis]
            if isinstance(d, int) and d == 1:
                continue
            if isinstance(dim, int) and dim == 1:
                dim = d
                continue
            same = same_dim(dim, d)
            if not same:
                why = "differ" if same is False else "cannot be proved equal"
                listed = " and ".join(show_shape(s) for s in shapes)
                fail(op, f"shapes {listed} do not broadcast: {dim} and {d} at axis {axis} {why}")
            if isinstance(d, int):
                dim = d
        result.append(dim)
    return tuple(result)


def broadcast_infos(op: str, infos: Sequence[TensorStructInfo], dtype: str | None) -> TensorStructInfo:
    """Struct info of an elementwise result over `infos`."""
    shapes = [tuple(info.shape) for info in infos if info.shape is not None]
    if len(shapes) == len(infos):
        return TensorStructInfo(broadcast_shapes(op, *shapes), dtype)
    known = all(info.ndim >= 0 for info in infos)
    return TensorStructInfo(None, dtype, max(info.ndim for info in infos) if known else -1)


# --- axes -------------------------------------------------------------------------------------------------------------


def normalize_axis(op: str, axis: int, ndim: int) -> int:
    """`axis` counted from the front; unchanged if the rank is unknown (-1)."""
    if ndim < 0:
        return int(axis)
    if not -ndim <= axis < ndim:
        fail(op, f"axis {axis} is outside a tensor of {ndim} dimensions")
    return int(axis) % ndim


def normalize_axes(op: str, axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """`axes` counted from the front and sorted; unchanged if the rank is unknown (-1)."""
    if ndim < 0:
        return tuple(int(a) for a in axes)
    result = sorted(normalize_axis(op, a, ndim) for a in axes)
    if len(set(result)) != len(result):
        fail(op, f"axes {tuple(axes)} name an axis of a {ndim}-dimensional tensor twice")
    return tuple(result)


def int_tuple(op: str, what: str, values: int | Sequence[int], n: int) -> tuple[int, ...]:
    """`values` as `n` integers; one integer stands for all."""
    if isinstance(values, (int, np.integer)):
        return (int(values),) * n
    result = tuple(int(v) for v in values)
    if len(result) != n:
        fail(op, f"{what} {result} has {len(result)} values, expected {n}")
    return result


# --- Python values to expressions -------------------------------------------------------------------------------------


def as_expr(value: TensorLike, dtype: str | None = None) -> Expr:
    """`value` as an expression; numbers and arrays become constants, numbers of `dtype` if it is given.

    A symbolic integer becomes a tensor without axes.
    """
    if isinstance(value, Expr):
        return value
    if isinstance(value, PrimExpr):
        return _tensor_of(value, dtype)
    if isinstance(value, np.ndarray):
        return Constant(value)
    if dtype in INTEGER and isinstance(value, (float, np.floating)) and not float(value).is_integer():
        raise CompileError(f"the number {value} next to a tensor of {dtype} is not an integer; cast the tensor")
    try:
        return Constant(np.asarray(value, dtype=dtype))
    except OverflowError as error:
        raise CompileError(f"the number {value} next to a tensor of {dtype} is out of its range") from error


def _tensor_of(value: PrimExpr, dtype: str | None) -> Expr:
    from pyvm.op.elementwise import cast
    from pyvm.op.shape import reshape, shape_to_tensor

    tensor = reshape(shape_to_tensor((value,)), ())
    return tensor if dtype in (None, "int64") else cast(tensor, str(dtype))


def as_exprs(*values: TensorLike) -> list[Expr]:
    """`values` as expressions; Python numbers take the dtype of the first one that has a dtype."""
    dtype = None
    for value in values:
        if isinstance(value, np.ndarray):
            dtype = value.dtype.name
        elif isinstance(value, Expr) and (info := known_tensor(value)) is not None:
            dtype = info.dtype
        if dtype is not None:
            break
    return [as_expr(v, dtype) for v in values]


def as_shape(shape: Expr | Sequence[Prim]) -> Expr:
    """`shape` as a shape expression."""
    return shape if isinstance(shape, Expr) else ShapeExpr(tuple(_as_dim(d) for d in shape))


def as_prim(value: Expr | Prim | float) -> Expr:
    """`value` as a primitive expression."""
    if isinstance(value, Expr):
        return value
    return PrimValue(value.item() if isinstance(value, np.generic) else value)


def _as_dim(d: Any) -> Prim:
    if isinstance(d, (PrimExpr, int)):
        return d
    try:
        return int(d)
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"expected a size, an int or a symbolic integer, got {shown(d)}") from None


def make_call(op: Op, args: Iterable[Expr], attrs: dict[str, Any] | None = None) -> Call:
    """A call of `op`, with struct info as soon as that of every argument is known."""
    args = tuple(args)
    call = Call(op, args, attrs or {})
    if any(arg.struct_info is None for arg in args):
        return call
    return Call(op, args, call.attrs, infer_call(call))


# --- registration -----------------------------------------------------------------------------------------------------


def reference(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a numpy reference: no floating point warnings, arrays contiguous, never a numpy scalar."""

    def run(attrs: dict[str, Any], *args: Any) -> Any:
        if "dtype" in attrs:
            _check_numpy_has(attrs["dtype"])
        with np.errstate(all="ignore"):
            result = evaluate(attrs, *args)
        if isinstance(result, tuple) and result and isinstance(result[0], np.ndarray):
            return tuple(np.ascontiguousarray(r).reshape(r.shape) for r in result)
        if isinstance(result, (np.ndarray, np.generic)):
            result = np.asarray(result)
            return np.ascontiguousarray(result).reshape(result.shape)
        return result

    return run


def _check_numpy_has(dtype: str) -> None:
    try:
        np.dtype(dtype)
    except TypeError as error:  # bfloat16, unless another package has added it
        raise ArgumentValueError(f"numpy has no dtype {dtype}") from error


def lower_to_kernel(name: str, inplace: tuple[int, ...] = ()) -> Callable[[Call], Lowered]:
    """Lowering to `kernel.<name>(inputs..., outputs...)`."""

    def lower(call: Call) -> Lowered:
        return KernelCall(f"kernel.{name}", list(call.args), inplace)

    return lower


def in_float32(lower: Callable[[Call], Lowered]) -> Callable[[Call], Lowered]:
    """Lower a call on float16 or bfloat16 tensors through float32, for kernels that have no half precision loop."""

    def through(call: Call) -> Lowered:
        if not any(_is_half(arg) for arg in call.args):
            return lower(call)
        return Decompose(lambda bb: _compute_in_float32(bb, call))

    return through


def _is_half(arg: Expr) -> bool:
    info = arg.struct_info
    return isinstance(info, TensorStructInfo) and info.dtype in HALF


def _compute_in_float32(bb: BlockBuilder, call: Call) -> Expr:
    from pyvm.op.elementwise import cast

    assert isinstance(call.op, Op)
    args = [bb.emit(cast(arg, "float32")) if _is_half(arg) else arg for arg in call.args]
    wide = bb.emit(make_call(call.op, args, call.attrs))
    info = call.struct_info
    if isinstance(info, TupleStructInfo):
        return Tuple([_cast_back(bb, bb.emit(TupleGetItem(wide, i)), f) for i, f in enumerate(info.fields)])
    return _cast_back(bb, wide, info)


def _cast_back(bb: BlockBuilder, wide: Expr, info: StructInfo | None) -> Expr:
    from pyvm.op.elementwise import cast

    if isinstance(info, TensorStructInfo) and info.dtype in HALF:
        return bb.emit(cast(wide, info.dtype))
    return wide


def define(
    name: str,
    infer: Callable[[Call], StructInfo],
    evaluate: Callable[..., Any],
    lower: Callable[[Call], Lowered] | None = None,
    *,
    n_outputs: int = 1,
    half: bool = True,
    operands: tuple[int, int | None] | None = None,
    attrs: Mapping[str, Kind] | None = None,
) -> Op:
    """Register an operator.

    `lower` defaults to the kernel of the same name; `half` says that the kernel takes half precision tensors itself;
    `operands` defaults to what the signature of `evaluate` says, `attrs` to none.
    """
    lower = lower or lower_to_kernel(name)
    lower = lower if half else in_float32(lower)
    operands = operands or _operand_counts(evaluate)
    return register_op(Op(name, infer, reference(evaluate), lower, n_outputs, True, operands, attrs or {}))


def _operand_counts(evaluate: Callable[..., Any]) -> tuple[int, int | None]:
    """How many operands a numpy reference takes at least, and at most (None: any number)."""
    parameters = list(inspect.signature(evaluate).parameters.values())[1:]  # the first one is the attributes
    named = [p for p in parameters if p.kind is not p.VAR_POSITIONAL]
    return sum(p.default is p.empty for p in named), len(named) if named == parameters else None
