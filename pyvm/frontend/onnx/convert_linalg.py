"""Matrix products: MatMul, Gemm, MatMulInteger, Einsum."""

from __future__ import annotations

from pyvm import op
from pyvm.frontend.onnx.convert_elementwise import broadcast_dims
from pyvm.frontend.onnx.node import Node
from pyvm.frontend.onnx.registry import ConverterTable
from pyvm.ir import Expr, Prim


def _matmul(node: Node) -> Expr:
    a, b = node.tensor(0), node.tensor(1)
    a_shape, b_shape = node.shape(a), node.shape(b)
    if not a_shape or not b_shape:
        raise node.error(f"shapes {a_shape} and {b_shape}: a matrix product has no scalars")
    inner: list[Prim | None] = [None] * len(b_shape)
    inner[-2 if len(b_shape) > 1 else 0] = a_shape[-1]
    b = node.agreeing(b, inner)
    batch = broadcast_dims(node, [a_shape[:-2], b_shape[:-2]])
    if batch is None:
        return op.matmul(a, b)
    rows, columns = a_shape[-2:-1], node.shape(b)[-1:] if len(b_shape) > 1 else ()
    return node.kernel("matmul", [a, b], (*batch, *rows, *columns), node.dtype(a))


def _matmul_integer(node: Node) -> Expr:
    return op.matmul_integer(node.tensor(0), node.tensor(1), node.optional(2), node.optional(3))


def _gemm(node: Node) -> Expr:
    return op.gemm(
        node.tensor(0),
        node.tensor(1),
        node.optional(2),
        alpha=node.attr("alpha", 1.0),
        beta=node.attr("beta", 1.0),
        trans_a=bool(node.attr("transA", 0)),
        trans_b=bool(node.attr("transB", 0)),
    )


def _einsum(node: Node) -> Expr:
    equation = "".join(node.attr("equation").split())
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    operands = node.tensors()
    if len(terms) != len(operands):
        raise node.error(f"equation {equation!r} has {len(terms)} terms, {len(operands)} operands are given")
    if not arrow:  # the default result counts labels of the whole equation, so it is written out before they go
        letters = "".join(terms).replace(".", "")
        once = sorted(label for label in set(letters) if letters.count(label) == 1)
        arrow, right = "->", ("..." if "..." in left else "") + "".join(once)
    for i, term in enumerate(terms):
        operands[i], terms[i] = _take_diagonals(node, operands[i], term)
    return op.einsum(",".join(terms) + arrow + right, *operands)


def _take_diagonals(node: Node, x: Expr, term: str) -> tuple[Expr, str]:
    """Keeps the elements whose indices agree where labels do: afterwards each label stands for one axis."""
    while True:
        label = next((c for c in term if c != "." and term.count(c) > 1), None)
        if label is None:
            return x, term
        ndim, before = node.ndim(x), term.partition("...")[0]

        def axis(position: int, term: str = term, ndim: int = ndim, before: str = before) -> int:
            return position if position < len(before) else position - len(term) + ndim

        first, second = term.index(label), term.rindex(label)
        axes = [axis(first), axis(second)]
        rest = [i for i in range(ndim) if i not in axes]
        x = node.emit(op.transpose(x, (*rest, *axes)))
        *batch, rows, columns = node.shape(x)
        if not isinstance(rows, int) or rows != columns:
            raise node.error(f"label {label!r} stands for dimensions {rows} and {columns}")
        # Element (i, i) of a matrix with n columns is element i * (n + 1) of its elements in a row.
        flat = node.reshape(x, (*batch, rows * rows))
        x = node.emit(op.strided_slice(flat, [0], [rows * rows], [rows + 1], axes=[len(batch)]))
        term = term[:first] + term[first + 1 : second] + term[second + 1 :] + label


CONVERTERS: ConverterTable = {
    "Einsum": {12: _einsum},
    "Gemm": {1: _gemm},
    "MatMul": {1: _matmul},
    "MatMulInteger": {10: _matmul_integer},
}
