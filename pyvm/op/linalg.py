"""Matrix products: matmul, gemm, integer matmul, einsum."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyvm.ir.builder import BlockBuilder
from pyvm.ir.expr import Call, Constant, Expr
from pyvm.ir.prim import Prim
from pyvm.ir.struct_info import StructInfo, TensorStructInfo
from pyvm.op.attributes import FLAG, NUMBER
from pyvm.op.common import (
    FLOAT,
    INTEGER,
    Shape,
    TensorLike,
    as_expr,
    broadcast_shapes,
    check_dtype,
    check_ndim,
    define,
    fail,
    make_call,
    product,
    require_dtype,
    require_ndim,
    require_shape,
    same_dim,
    same_dtype,
    show_shape,
    tensor_info,
)
from pyvm.op.elementwise import cast, mul
from pyvm.op.movement import transpose
from pyvm.op.reduce import reduce_sum
from pyvm.op.registry import Decompose, KernelCall, Lowered
from pyvm.op.shape import reshape

# --- matmul -----------------------------------------------------------------------------------------------------------


def _matmul_shape(op: str, a: Shape, b: Shape) -> Shape:
    """Shape of a @ b by numpy's rule."""
    if not a or not b:
        fail(op, f"lhs {show_shape(a)}, rhs {show_shape(b)}: a scalar has no matrix product")
    inner_a, inner_b = a[-1], b[-2] if len(b) > 1 else b[0]
    same = same_dim(inner_a, inner_b)
    if not same:
        why = "differ" if same is False else "cannot be proved equal"
        fail(op, f"lhs {show_shape(a)}, rhs {show_shape(b)}: inner sizes {inner_a} and {inner_b} {why}")
    rows = a[-2:-1]
    cols = b[-1:] if len(b) > 1 else ()
    return (*broadcast_shapes(op, a[:-2], b[:-2]), *rows, *cols)


def _infer_product(op: str, a: TensorStructInfo, b: TensorStructInfo, dtype: str | None) -> TensorStructInfo:
    if a.shape is not None and b.shape is not None:
        return TensorStructInfo(_matmul_shape(op, tuple(a.shape), tuple(b.shape)), dtype)
    if a.ndim < 0 or b.ndim < 0:
        return TensorStructInfo(None, dtype)
    ndim = max(a.ndim, b.ndim, 2) - (a.ndim == 1) - (b.ndim == 1)
    return TensorStructInfo(None, dtype, ndim)


_MATMUL_DTYPES = FLOAT | {"int32", "int64", "uint32", "uint64"}


def _infer_matmul(call: Call) -> StructInfo:
    a, b = tensor_info(call, 0), tensor_info(call, 1)
    dtype = same_dtype("matmul", [a, b])
    check_dtype("matmul", "lhs", a, _MATMUL_DTYPES)
    check_dtype("matmul", "rhs", b, _MATMUL_DTYPES)
    return _infer_product("matmul", a, b, dtype)


def _evaluate_matmul(attrs: dict[str, Any], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype == np.float16:
        return np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(np.float16)
    return np.asarray(np.matmul(a, b))


_MATMUL = define("matmul", _infer_matmul, _evaluate_matmul, half=False)


def matmul(a: TensorLike, b: TensorLike) -> Call:
    """Matrix product over the last two axes, with numpy's rules for vectors and for broadcasting of leading axes.

    Parameters
    ----------
    a : tensor, (..., m, k) or (k,)
    b : tensor, (..., k, n) or (k,)
        Of the dtype of `a`.

    Returns
    -------
    Call
        Tensor (..., m, n), without m or n for a vector.

    Source: ONNX MatMul.
    """
    return make_call(_MATMUL, [as_expr(a), as_expr(b)])


# --- gemm -------------------------------------------------------------------------------------------------------------


def _infer_gemm(call: Call) -> StructInfo:
    infos = [tensor_info(call, i) for i in range(len(call.args))]
    dtype = same_dtype("gemm", infos)
    for what, info in zip("abc", infos, strict=False):
        check_dtype("gemm", what, info, _MATMUL_DTYPES)
    check_ndim("gemm", "a", infos[0], 2)
    check_ndim("gemm", "b", infos[1], 2)
    a, b = infos[0].shape, infos[1].shape
    if a is None or b is None:
        return TensorStructInfo(None, dtype, 2)
    a = a[::-1] if call.attrs["trans_a"] else a
    b = b[::-1] if call.attrs["trans_b"] else b
    shape = _matmul_shape("gemm", tuple(a), tuple(b))
    if len(infos) == 3 and infos[2].shape is not None:
        c = tuple(infos[2].shape)
        if broadcast_shapes("gemm", c, shape) != shape:
            fail("gemm", f"c {show_shape(c)} does not broadcast to the product {show_shape(shape)}")
    return TensorStructInfo(shape, dtype)


def _evaluate_gemm(attrs: dict[str, Any], a: np.ndarray, b: np.ndarray, c: np.ndarray | None = None) -> np.ndarray:
    dtype = a.dtype
    wide = np.float32 if dtype == np.float16 else np.float64 if dtype.kind in "iu" else dtype
    product_ab = (a.T if attrs["trans_a"] else a).astype(wide) @ (b.T if attrs["trans_b"] else b).astype(wide)
    result = attrs["alpha"] * product_ab
    if c is not None:
        result = result + attrs["beta"] * c.astype(wide)
    return result.astype(dtype)


def _lower_gemm(call: Call) -> Lowered:
    if tensor_info(call, 0).dtype in INTEGER:  # the kernel is BLAS: floats only
        return Decompose(lambda bb: _gemm_in_float64(bb, call))
    c = call.args[2] if len(call.args) == 3 else None
    attrs = call.attrs
    scalars = [attrs["alpha"], attrs["beta"], int(attrs["trans_a"]), int(attrs["trans_b"])]
    return KernelCall("kernel.gemm", [call.args[0], call.args[1], c, *scalars])


def _gemm_in_float64(bb: BlockBuilder, call: Call) -> Expr:
    args = [bb.emit(cast(arg, "float64")) for arg in call.args]
    return bb.emit(cast(bb.emit(make_call(_GEMM, args, call.attrs)), require_dtype("gemm", call)))


_GEMM = define(
    "gemm",
    _infer_gemm,
    _evaluate_gemm,
    _lower_gemm,
    half=False,
    attrs={"alpha": NUMBER, "beta": NUMBER, "trans_a": FLAG, "trans_b": FLAG},
)


def gemm(
    a: TensorLike,
    b: TensorLike,
    c: TensorLike | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    trans_a: bool = False,
    trans_b: bool = False,
) -> Call:
    """alpha * a' @ b' + beta * c, where a' and b' are transposed if asked for.

    Parameters
    ----------
    a : tensor, (m, k), or (k, m) with `trans_a`
    b : tensor, (k, n), or (n, k) with `trans_b`
    c : tensor that broadcasts to (m, n), optional
    alpha, beta : float
    trans_a, trans_b : bool

    Returns
    -------
    Call
        Tensor (m, n).

    Source: ONNX Gemm.
    """
    args = [as_expr(a), as_expr(b)]
    if c is not None:
        args.append(as_expr(c))
    attrs = {"alpha": float(alpha), "beta": float(beta), "trans_a": bool(trans_a), "trans_b": bool(trans_b)}
    return make_call(_GEMM, args, attrs)


# --- integer matmul ---------------------------------------------------------------------------------------------------

_BYTES = frozenset({"int8", "uint8"})


def _infer_matmul_integer(call: Call) -> StructInfo:
    a, b = tensor_info(call, 0), tensor_info(call, 1)
    check_dtype("matmul_integer", "lhs", a, _BYTES)
    check_dtype("matmul_integer", "rhs", b, _BYTES)
    for index, (what, info) in enumerate((("lhs", a), ("rhs", b)), start=2):
        zero = tensor_info(call, index)
        if zero.dtype != info.dtype:
            fail("matmul_integer", f"{what} has dtype {info.dtype}, but its zero point has {zero.dtype}")
    return _infer_product("matmul_integer", a, b, "int32")


def _evaluate_matmul_integer(
    attrs: dict[str, Any], a: np.ndarray, b: np.ndarray, a_zero: np.ndarray, b_zero: np.ndarray
) -> np.ndarray:
    # A zero point per row of a has shape (m,) and belongs to axis -2; one per column of b lies along axis -1 already.
    rows = a_zero.reshape(-1, 1) if a_zero.ndim == 1 and a_zero.size > 1 else a_zero
    return np.asarray(np.matmul(a.astype(np.int32) - rows, b.astype(np.int32) - b_zero), np.int32)


_MATMUL_INTEGER = define("matmul_integer", _infer_matmul_integer, _evaluate_matmul_integer)


def matmul_integer(
    a: TensorLike, b: TensorLike, a_zero: TensorLike | None = None, b_zero: TensorLike | None = None
) -> Call:
    """(a - a_zero) @ (b - b_zero) in 32-bit integers.

    Parameters
    ----------
    a : int8 or uint8 tensor, (..., m, k)
    b : int8 or uint8 tensor, (..., k, n)
    a_zero : tensor of the dtype of `a`, one element or (m,), optional
        Zero point; 0 if absent.
    b_zero : tensor of the dtype of `b`, one element or (n,), optional

    Returns
    -------
    Call
        int32 tensor (..., m, n).

    Source: ONNX MatMulInteger.
    """
    args = [as_expr(a), as_expr(b)]
    zeros = [_zero_point(zero, like) for zero, like in zip((a_zero, b_zero), args, strict=True)]
    return make_call(_MATMUL_INTEGER, [*args, *zeros])


def _zero_point(zero: TensorLike | None, like: Expr) -> Expr:
    info = like.struct_info
    dtype = info.dtype if isinstance(info, TensorStructInfo) else None
    return Constant(np.zeros((), dtype)) if zero is None else as_expr(zero, dtype)


# --- einsum -----------------------------------------------------------------------------------------------------------


def einsum(equation: str, *operands: TensorLike) -> Expr:
    """Sum of products by Einstein's notation, composed of transpose, reshape, reduce_sum and matmul.

    Parameters
    ----------
    equation : str
        Terms of letters and at most one `...`, e.g. "bhid,bhjd->bhij"; without `->` the output has the letters that
        occur once, sorted. A letter repeated inside one term (a diagonal) is not accepted.
    *operands : tensor
        One per term, of one dtype and known shape.

    Returns
    -------
    Expr
        Tensor with the axes of the output term.

    Source: ONNX Einsum.
    """
    tensors = [as_expr(x) for x in operands]
    terms, output = _parse_einsum(equation, tensors)
    current, labels = _sum_out(tensors[0], terms[0], set("".join(terms[1:])) | set(output))
    for i in range(1, len(tensors)):
        keep = set("".join(terms[i + 1 :])) | set(output)
        right, right_labels = _sum_out(tensors[i], terms[i], keep | set(labels))
        current, labels = _contract(equation, current, labels, right, right_labels, keep)
        current, labels = _sum_out(current, labels, keep)
    return _transposed(current, labels, output)


def _parse_einsum(equation: str, operands: Sequence[Expr]) -> tuple[list[str], str]:
    """Terms and output with `...` spelled out in letters that the equation does not use."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        fail("einsum", f"{equation!r} has {len(terms)} terms for {len(operands)} operands")
    spare = [c for c in string.ascii_letters if c not in equation]
    n_ellipsis = 0
    for term, operand in zip(terms, operands, strict=True):
        ndim, n_letters = require_ndim("einsum", operand), len(term.replace("...", ""))
        if ndim < n_letters or (ndim > n_letters and "..." not in term):
            fail("einsum", f"term {term!r} of {equation!r} does not fit an operand of {ndim} dimensions")
        n_ellipsis = max(n_ellipsis, ndim - n_letters)
    if n_ellipsis > len(spare):
        fail("einsum", f"{equation!r} needs more than {len(string.ascii_letters)} letters")
    dots = "".join(spare[:n_ellipsis])
    spelled = []
    for term, operand in zip(terms, operands, strict=True):
        n = require_ndim("einsum", operand) - len(term.replace("...", ""))
        spelled.append(term.replace("...", dots[n_ellipsis - n :]))
    if arrow:
        output = output.replace("...", dots)
    else:
        joined = "".join(spelled)
        output = dots + "".join(sorted(c for c in set(joined) if joined.count(c) == 1 and c not in dots))
    for term in [*spelled, output]:
        if not term.isalpha() and term:
            fail("einsum", f"{equation!r} has characters other than letters, commas, `...` and `->`")
        if len(set(term)) != len(term):
            fail("einsum", f"{equation!r} repeats a letter inside one term, which is not supported")
    for letter in output:
        if letter not in "".join(spelled):
            fail("einsum", f"{equation!r}: output letter {letter!r} is in no operand")
    return spelled, output


def _sum_out(x: Expr, labels: str, keep: set[str]) -> tuple[Expr, str]:
    """`x` summed over the labels that nobody needs any more."""
    axes = [i for i, label in enumerate(labels) if label not in keep]
    if not axes:
        return x, labels
    return reduce_sum(x, axes), "".join(label for label in labels if label in keep)


def _transposed(x: Expr, labels: str, order: str) -> Expr:
    perm = [labels.index(label) for label in order]
    return x if perm == list(range(len(perm))) else transpose(x, perm)


def _contract(equation: str, a: Expr, a_labels: str, b: Expr, b_labels: str, keep: set[str]) -> tuple[Expr, str]:
    """Product of two operands: one batched matrix product over their shared labels that are not kept."""
    sizes: dict[str, Prim] = {}
    a_shape, b_shape = require_shape("einsum", a), require_shape("einsum", b)
    for label, dim in [*zip(a_labels, a_shape, strict=True), *zip(b_labels, b_shape, strict=True)]:
        known = sizes.setdefault(label, dim)
        if known == 1:
            sizes[label] = dim
        elif dim != 1 and not same_dim(known, dim):
            fail("einsum", f"{equation!r}: {label!r} is {known} in one operand and {dim} in another")
    shared = [label for label in a_labels if label in b_labels]
    if any(same_dim(a_shape[a_labels.index(s)], b_shape[b_labels.index(s)]) is not True for s in shared):
        # One side has size 1 and broadcasts: multiply elementwise, the caller sums what is not kept.
        labels = a_labels + "".join(label for label in b_labels if label not in a_labels)
        wide_b = _transposed(b, b_labels, "".join(label for label in labels if label in b_labels))
        a_dims = [*a_shape, *[1] * (len(labels) - len(a_labels))]
        b_dims: list[Prim] = [b_shape[b_labels.index(label)] if label in b_labels else 1 for label in labels]
        return mul(reshape(a, a_dims, allow_zero=True), reshape(wide_b, b_dims, allow_zero=True)), labels
    batch = "".join(label for label in shared if label in keep)
    inner = "".join(label for label in shared if label not in keep)
    rows = "".join(label for label in a_labels if label not in b_labels)
    cols = "".join(label for label in b_labels if label not in a_labels)
    lhs = _grouped(_transposed(a, a_labels, batch + rows + inner), [batch, rows, inner], sizes)
    rhs = _grouped(_transposed(b, b_labels, batch + inner + cols), [batch, inner, cols], sizes)
    labels = batch + rows + cols
    return reshape(matmul(lhs, rhs), [sizes[label] for label in labels], allow_zero=True), labels


def _grouped(x: Expr, groups: Sequence[str], sizes: dict[str, Prim]) -> Expr:
    """`x` with one axis per group of labels; the first group, of batch labels, keeps its axes."""
    batch, first, second = groups
    dims = [sizes[label] for label in batch]
    shape = [*dims, product(sizes[c] for c in first), product(sizes[c] for c in second)]
    return reshape(x, shape, allow_zero=True)
