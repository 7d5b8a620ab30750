"""What a converter sees of one ONNX node: its inputs in the form it wants them, its attributes, and a way to emit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from pyvm import op
from pyvm.frontend.onnx import shape_values
from pyvm.frontend.onnx.model_file import attribute_value, element_type, numpy_dtype
from pyvm.frontend.onnx.shape_values import Content, are_numbers
from pyvm.ir import (
    BlockBuilder,
    Call,
    Constant,
    Expr,
    Prim,
    PrimExpr,
    PrimStructInfo,
    PrimValue,
    ShapeExpr,
    ShapeStructInfo,
    SymVar,
    TensorStructInfo,
    TupleGetItem,
    Var,
    call_dps_packed,
    free_vars,
    prove_equal,
)
from pyvm.op.registry import Op
from vmcore.errors import FrontendError

if TYPE_CHECKING:
    from pyvm.frontend.onnx.importer import GraphImporter

# Results up to this many elements are computed while importing, because shapes often depend on them.
_FOLD_ELEMENTS = 1024
_MISSING = object()


class Node:
    """One node of the graph being imported.

    Attributes
    ----------
    op_type : str
    domain : str
        "" for the standard operators.
    opset : int
        Version of the domain that the model imports.
    source : str
        "conv1 (Conv-11)": how errors, profiles and bytecode name the node.
    """

    def __init__(self, importer: GraphImporter, proto: onnx.NodeProto, domain: str, opset: int) -> None:
        self._importer = importer
        self._proto = proto
        self._attributes = {attribute.name: attribute for attribute in proto.attribute}
        self.op_type: str = proto.op_type
        self.domain = domain
        self.opset = opset
        self.source = node_source(proto, opset)

    def error(self, message: str) -> FrontendError:
        """The error to raise when this node cannot be converted."""
        return FrontendError(f"{self.source}: {message}")

    # --- attributes

    def attr(self, name: str, default: Any = _MISSING) -> Any:
        """Value of an attribute; without a default it must be there."""
        attribute = self._attributes.get(name)
        if attribute is not None:
            return attribute_value(attribute, self._importer.folder)
        if default is _MISSING:
            raise self.error(f"attribute {name!r} is missing")
        return default

    def has_attr(self, name: str) -> bool:
        """Whether the node has the attribute."""
        return name in self._attributes

    def dtype_attr(self, name: str) -> str:
        """An attribute that holds an element type, as a dtype."""
        return element_type(self.attr(name), f"{self.source}: attribute {name!r}")

    # --- subgraphs

    @property
    def builder(self) -> BlockBuilder:
        """Where the nodes are emitted."""
        return self._importer.builder

    def subgraph(self, name: str) -> onnx.GraphProto:
        """The graph in an attribute."""
        graph = self.attr(name)
        if not isinstance(graph, onnx.GraphProto):
            raise self.error(f"attribute {name!r} is not a graph")
        return graph

    def graph(self, name: str, arguments: Sequence[Expr] = (), declared: bool = False) -> list[Expr]:
        """Emits the subgraph in an attribute; returns its results, with `declared` as its outputs are declared."""
        return self._importer.graph(self.subgraph(name), arguments, declared)

    def splice(self, name: str) -> None:
        """Puts the subgraph in an attribute in the place of this node; a converter returns [] after it."""
        self._importer.splice(self.subgraph(name), self._proto.output)

    def share_memory(self, value: Expr, sources: Sequence[Expr]) -> None:
        """Says that `value` may be one of `sources`, which may share memory with arguments."""
        self._importer.share_memory(value, sources)

    @property
    def n_fresh_dims(self) -> int:
        """How many symbols there are that no one has a name for."""
        return len(self._importer.fresh_dims)

    def symbols_since(self, count: int) -> frozenset[SymVar]:
        """Those that came after the first `count`."""
        return frozenset(self._importer.fresh_dims[count:])

    @property
    def n_outputs(self) -> int:
        """Outputs that are listed, absent ones included."""
        return len(self._proto.output)

    # --- inputs as tensors

    @property
    def n_inputs(self) -> int:
        """Inputs up to the last one that is there."""
        names = list(self._proto.input)
        while names and not names[-1]:
            names.pop()
        return len(names)

    def wants(self, index: int) -> bool:
        """Whether somebody may use output `index`."""
        return index < len(self._proto.output) and bool(self._proto.output[index])

    def has(self, index: int) -> bool:
        """Whether input `index` is there."""
        return index < len(self._proto.input) and bool(self._proto.input[index])

    def name_of(self, index: int) -> str:
        """Name of input `index`, which must be there."""
        if not self.has(index):
            raise self.error(f"input {index} is missing ({self.n_inputs} given)")
        return self._proto.input[index]

    def tensor(self, index: int) -> Expr:
        """Input `index` as an expression."""
        return self._importer.tensor(self.name_of(index))

    def optional(self, index: int) -> Expr | None:
        """Input `index`, None if it is absent."""
        return self.tensor(index) if self.has(index) else None

    def tensors(self) -> list[Expr]:
        """All inputs; none may be absent."""
        return [self.tensor(i) for i in range(self.n_inputs)]

    # --- what is known about tensors (given as an expression, or as the name of a value)

    def shape(self, x: Expr | str) -> tuple[Prim, ...]:
        """Dimensions of `x`."""
        if isinstance(x, str):
            content = self._importer.symbols(x)
            if content is not None:
                return content.shape
        info = self._info(x)
        if info.shape is None:
            raise self.error(f"the shape of an argument is not known before the model runs ({info})")
        return info.shape

    def static_shape(self, x: Expr) -> tuple[int, ...]:
        """Dimensions of `x`, all of which must be numbers."""
        shape = self.shape(x)
        if not are_numbers(shape):
            raise self.error(f"the shape {shape} must be known; fix it with shape_dict")
        return tuple(shape)

    def ndim(self, x: Expr) -> int:
        """Rank of `x`."""
        ndim = self._info(x).ndim
        if ndim < 0:
            raise self.error("the rank of an argument is not known; give its shape with shape_dict")
        return ndim

    def dtype(self, x: Expr | str) -> str:
        """Element type of `x`."""
        if isinstance(x, str):
            return self._importer.dtype(x)
        dtype = self._info(x).dtype
        assert dtype is not None, "imported tensors have a dtype"
        return dtype

    def _info(self, x: Expr | str) -> TensorStructInfo:
        info = (self._importer.tensor(x) if isinstance(x, str) else x).struct_info
        if not isinstance(info, TensorStructInfo):
            raise self.error(f"an argument is not a tensor but {info}")
        return info

    def axis(self, value: int, ndim: int) -> int:
        """`value` as an axis counted from the front."""
        if not -ndim <= value < ndim:
            raise self.error(f"axis {value} is outside a tensor of {ndim} dimensions")
        return value % ndim

    # --- inputs as numbers

    def constant(self, index: int) -> np.ndarray | None:
        """Values of input `index` if they are known now, else None (also if it is absent)."""
        return self._importer.constant(self._proto.input[index]) if self.has(index) else None

    def content(self, index: int) -> Content | None:
        """Elements of input `index` where they are known as numbers or symbols, else None."""
        return self._importer.content(self._proto.input[index]) if self.has(index) else None

    def has_symbols(self) -> bool:
        """Whether some input is known element by element, but not as numbers."""
        return any(name and self._importer.symbols(name) is not None for name in self._proto.input)

    def ints(self, index: int) -> tuple[Prim, ...]:
        """Elements of an integer input with at most one dimension.

        Numbers or symbols where they are known; else they are read when the model runs and become new symbols, about
        which nothing is assumed.
        """
        name = self.name_of(index)
        content = self.content(index)
        if content is None:
            content = self._importer.read_by_name(self, name)
        values = tuple(content.reshape(-1))
        if not all(isinstance(value, (int, PrimExpr)) for value in values):
            raise self.error(f"input {index} ({name}) must have integer values, got {values}")
        return values

    def integer(self, index: int) -> Prim:
        """The only element of an integer input, as `ints` has it."""
        values = self.ints(index)
        if len(values) != 1:
            raise self.error(f"input {index} ({self.name_of(index)}) has {len(values)} elements, expected 1")
        return values[0]

    def static_ints(self, index: int) -> tuple[int, ...]:
        """Elements of an integer input that must be known now."""
        values = self.known_ints(index)
        if values is None:
            raise self.error(f"input {index} ({self.name_of(index)}) must be a constant of the model")
        return values

    def known_ints(self, index: int) -> tuple[int, ...] | None:
        """Elements of an integer input if they are all known as numbers, else None."""
        content = self.content(index)
        if content is None or not shape_values.is_constant(content):
            return None
        return tuple(int(value) for value in content.reshape(-1))

    # --- arguments that moved from attributes to inputs over the opsets

    def axes_are_known(self) -> bool:
        """Whether `static_axes` can be called."""
        return self.has_attr("axes") or not self.has(1) or self.known_ints(1) is not None

    def static_axes(self) -> tuple[int, ...] | None:
        """The axes of Squeeze, Unsqueeze and reductions; None if they are not given."""
        if self.has_attr("axes"):
            return tuple(self.attr("axes"))
        return self.static_ints(1) if self.has(1) else None

    def slice_arguments(self) -> tuple[tuple[Prim, ...], tuple[Prim, ...], tuple[int, ...], tuple[Prim, ...]] | None:
        """Starts, ends, axes and steps of Slice; None if the axes are not known."""
        if self.opset < 10:
            starts, ends = tuple(self.attr("starts")), tuple(self.attr("ends"))
            axes: tuple[int, ...] | None = tuple(self.attr("axes", range(len(starts))))
            steps: tuple[Prim, ...] = (1,) * len(starts)
        else:
            starts, ends = self.ints(1), self.ints(2)
            axes = self.known_ints(3) if self.has(3) else tuple(range(len(starts)))
            steps = self.ints(4) if self.has(4) else (1,) * len(starts)
        if axes is None:
            return None
        if not len(starts) == len(ends) == len(axes) == len(steps):
            raise self.error(f"starts {starts}, ends {ends}, axes {axes} and steps {steps} differ in length")
        return starts, ends, axes, steps

    def split_sizes(self, size: Prim) -> list[Prim]:
        """Sizes of the outputs of Split along a dimension of `size`."""
        if self.has_attr("split"):
            return list(self.attr("split"))
        if self.has(1):
            return list(self.ints(1))
        parts = self.attr("num_outputs", len(self._proto.output))
        if parts != len(self._proto.output):
            raise self.error(f"{parts} parts for {len(self._proto.output)} outputs")
        if self.opset < 18:
            if isinstance(size, int) and size % parts:
                raise self.error(f"a dimension of {size} does not split into {parts} equal parts")
            return [size // parts] * parts
        chunk = (size + (parts - 1)) // parts
        return [chunk] * (parts - 1) + [size - chunk * (parts - 1)]

    # --- output

    def emit(self, expr: Expr, hint: str = "") -> Expr:
        """`expr` bound to a variable; a small expression of constants only becomes its value."""
        folded = fold(expr)
        return self._importer.emit(expr, hint) if folded is None else folded

    def emit_all(self, call: Expr, n: int) -> list[Expr]:
        """The `n` fields of a call with a tuple as its result."""
        value = self._importer.emit(call)
        return [self.emit(TupleGetItem(value, i)) for i in range(n)]

    def kernel(self, name: str, args: Sequence[object], shape: Sequence[Prim], dtype: str) -> Expr:
        """A direct call of a kernel, for what its operator cannot express; the kernel checks its arguments."""
        return call_dps_packed(f"kernel.{name}", args, TensorStructInfo(self.dims(shape), dtype))

    def match_cast(self, expr: Expr, shape: Sequence[Prim]) -> Var:
        """`expr`, checked at run time to have `shape`; symbols that are new get their value from it."""
        return self._importer.match_cast(expr, TensorStructInfo(shape, self._info(expr).dtype))

    def agreeing(self, x: Expr, shape: Sequence[Prim | None]) -> Expr:
        """`x`, checked at run time to have these dimensions (None: any) where that is not certain already."""
        own = self.shape(x)
        dims = [mine if dim is None else dim for mine, dim in zip(own, shape, strict=True)]
        if all(prove_equal(mine, dim) is not None for mine, dim in zip(own, dims, strict=True)):
            return x  # also if they differ for certain: the operator will say so
        return self.match_cast(x, dims)

    def fresh_dim(self, hint: str = "d") -> PrimExpr:
        """A symbol for a dimension that no one has a name for."""
        return self._importer.fresh_dim(hint)

    def read_ints(self, x: Expr) -> list[Prim]:
        """New symbols for the elements of an integer tensor with at most one dimension, read when the model runs."""
        return list(self._importer.read_at_run_time(self, x).reshape(-1))

    def dims(self, values: Sequence[Prim]) -> list[Prim]:
        """The values as dimensions: those that were read at run time become symbols that are not negative."""
        return self._named(values, lambda value: not all(var.nonnegative for var in free_vars(value)), nonnegative=True)

    def name_values(self, values: Sequence[Prim], nonnegative: bool = False) -> list[Prim]:
        """The values, computed once and named: long expressions become symbols, everything else stays as it is."""
        return self._named(values, lambda value: not isinstance(value, SymVar), nonnegative)

    def _named(self, values: Sequence[Prim], needs_name: Callable[[Prim], bool], nonnegative: bool) -> list[Prim]:
        pending = [value for value in values if not isinstance(value, int) and needs_name(value)]
        if not pending:
            return list(values)
        symbols = {value: self._importer.fresh_dim("v", nonnegative) for value in pending}
        self._importer.match_cast(ShapeExpr(symbols), ShapeStructInfo(symbols.values()))
        return [value if isinstance(value, int) else symbols.get(value, value) for value in values]

    def bind_symbol(self, value: Expr, info: PrimStructInfo) -> None:
        """Makes the symbol in `info` stand for the scalar `value`."""
        self._importer.match_cast(value, info)

    def settle(self, expr: Expr) -> Expr:
        """`expr`, emitted, with dimensions that depend on integers read at run time named by new symbols."""
        value = self.emit(expr)
        shape = self.shape(value)
        dims = self.dims(shape)
        return value if tuple(dims) == shape else self.match_cast(value, dims)

    # --- small helpers that many converters need

    def cast(self, x: Expr, dtype: str) -> Expr:
        """`x` as `dtype`; `x` itself if it has that already."""
        return x if self.dtype(x) == dtype else self.emit(op.cast(x, dtype))

    def reshape(self, x: Expr, shape: Sequence[Prim]) -> Expr:
        """`x` under another shape; `x` itself if it has that already."""
        return x if self.shape(x) == tuple(shape) else self.emit(op.reshape(x, tuple(shape), allow_zero=True))

    def scalar_like(self, value: float, x: Expr) -> Constant:
        """A number in the element type of `x`."""
        return Constant(np.asarray(value, numpy_dtype(self.dtype(x))))


def node_source(proto: onnx.NodeProto, opset: int) -> str:
    """How a node is named in errors and debug information; a node without a name goes by its first output."""
    name = proto.name or next((output for output in proto.output if output), "?")
    return f"{name} ({proto.op_type}-{opset})"


def fold(expr: Expr) -> Constant | None:
    """The value of a small call of one operator on constants; None if it is not that."""
    if not isinstance(expr, Call) or not isinstance(expr.op, Op) or expr.op.n_outputs != 1 or not expr.op.is_pure:
        return None
    info = expr.struct_info
    if not isinstance(info, TensorStructInfo) or not info.is_static or info.dtype == "bfloat16":
        return None
    assert info.shape is not None and are_numbers(info.shape)
    if math.prod(info.shape) > _FOLD_ELEMENTS:
        return None
    values: list[Any] = []
    for arg in expr.args:
        if isinstance(arg, Constant) and arg.data.size <= _FOLD_ELEMENTS and arg.data.dtype.kind in "iufb":
            values.append(arg.data)
        elif isinstance(arg, PrimValue) and not isinstance(arg.value, PrimExpr):
            values.append(arg.value)
        elif isinstance(arg, ShapeExpr) and all(isinstance(value, int) for value in arg.values):
            values.append(tuple(arg.values))
        else:
            return None
    return Constant(np.asarray(expr.op.evaluate(expr.attrs, *values), dtype=info.dtype))
