"""ONNX graph to IR module: checks the model, walks its nodes in order and lets the converters translate them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from pyvm import op
from pyvm.frontend.onnx import shape_values
from pyvm.frontend.onnx.control_flow import BRANCHES, RanksDiffer, emit_branches
from pyvm.frontend.onnx.dimensions import Dimensions
from pyvm.frontend.onnx.functions import FunctionLibrary, Opsets, may_have_control_flow, opsets_of, resolve, schema_of
from pyvm.frontend.onnx.model_file import element_code, element_type, load_model, sparse_array, tensor_array
from pyvm.frontend.onnx.node import Node, fold, node_source
from pyvm.frontend.onnx.registry import Converter
from pyvm.frontend.onnx.shape_values import Content
from pyvm.ir import (
    BlockBuilder,
    Call,
    Constant,
    Expr,
    IRModule,
    Prim,
    PrimExpr,
    ShapeExpr,
    ShapeStructInfo,
    StructInfo,
    SymVar,
    TensorStructInfo,
    Tuple,
    Var,
    dtype_bytes,
    prove_equal,
)
from pyvm.ir.nesting import typed_nesting
from pyvm.op.registry import get_op
from vmcore.errors import CompileError, FrontendError, InternalError

_RESHAPE = get_op("reshape")
_MAX_BYTES = 2**47
_MAX_SPLITS = 64
_MAX_READ = 64  # each becomes a symbol; tensors have far fewer dimensions


@typed_nesting("the ONNX model", FrontendError)
def from_onnx(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    shape_dict: Mapping[str, int | Sequence[int | None]] | None = None,
) -> IRModule:
    """Import an ONNX model as an `IRModule` with one function, "main".

    Parameters take the names of the model's inputs (initializers are constants, also where the model lists them as
    inputs); the names of the outputs are in the function's attribute "output_names". Every binding carries the node it
    came from as its source.

    Parameters
    ----------
    model : path, bytes or onnx.ModelProto
        External data files are looked for beside the path.
    shape_dict : mapping, optional
        Dimensions to fix: an input's name with its shape (None leaves a dimension as it is), or the name of a symbolic
        dimension with its value. Dimensions that stay open become symbols of the module.

    Returns
    -------
    IRModule

    Raises
    ------
    UnsupportedOpError
        If there are operators without a converter; the message lists all of them with their nodes.
    FrontendError
        If the model is malformed, or uses an operator in a way that cannot be expressed.
    """
    proto, folder = load_model(model)
    return GraphImporter(proto, folder, dict(shape_dict or {})).run()


def _model_opsets(model: onnx.ModelProto) -> dict[str, int]:
    if not 0 <= model.ir_version < 1 << 31:
        raise FrontendError(f"the model's IR version is {model.ir_version}")
    opsets = opsets_of(model.opset_import)
    if not opsets and model.ir_version < 3:
        return {"": 1}  # models of that age have no opset field
    if not opsets:
        raise FrontendError(f"the model (IR version {model.ir_version}) does not say which opset it uses")
    return opsets


@dataclass(frozen=True)
class _Work:
    """Nodes to import from an index on, the opsets they are written in, and what comes after them."""

    nodes: Sequence[onnx.NodeProto]
    index: int
    opsets: Opsets
    after: _Work | None


class GraphImporter:
    """The state of one import: a builder, and what is known about each named value.

    A value is an expression, or the content of a shape computation (`shape_values`) that becomes an expression only
    when a converter asks for it as a tensor.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path | None, shape_dict: dict[str, object]) -> None:
        self.builder = BlockBuilder()
        self.folder = folder
        self._model = model
        self._graph = model.graph
        self._dimensions = Dimensions(shape_dict)
        self._exprs: dict[str, Expr] = {}
        self._contents: dict[str, Content] = {}
        self._dtypes: dict[str, str] = {}
        self._borrowed: set[int] = set()  # identities of variables that share memory with an argument
        self._functions = FunctionLibrary(model)
        self._opsets: Opsets = {}  # of the nodes being imported
        self.fresh_dims: list[SymVar] = []
        self._checkers: dict[int, tuple[Opsets, onnx.checker.C.CheckerContext]] = {}
        self._n_splits = 0

    def run(self) -> IRModule:
        """The module of the model."""
        opsets = _model_opsets(self._model)
        self._functions.refuse_unsupported(self._graph.node, opsets)
        self._define_constants(self._graph)
        params = self._params()
        outputs = [value.name for value in self._graph.output]
        if not outputs:
            raise FrontendError(f"graph {self._graph.name!r} has no outputs")
        attrs = {"input_names": tuple(param.name for param in params), "output_names": tuple(outputs)}
        with self.builder.function("main", params=params, attrs=attrs):
            plain = may_have_control_flow(self._graph.node, opsets)
            with nullcontext() if plain else self.builder.dataflow():
                finish = partial(self._outputs, outputs)
                results = self._walk(_Work(self._graph.node, 0, opsets, None), finish)
            self.builder.emit_func_output(results[0] if len(results) == 1 else Tuple(results))
        return self.builder.get()

    def _params(self) -> list[Var]:
        inputs = [value for value in self._graph.input if value.name not in self._exprs]
        self._dimensions.refuse_unknown(inputs)
        params = []
        for value in inputs:
            if value.name in self._exprs:
                raise FrontendError(f"graph {self._graph.name!r} has two inputs {value.name!r}")
            if value.type.WhichOneof("value") != "tensor_type":
                kind = value.type.WhichOneof("value") or "no type"
                raise FrontendError(f"input {value.name!r} is not a tensor ({kind.removesuffix('_type')})")
            dtype = element_type(value.type.tensor_type.elem_type, f"input {value.name!r}")
            param = Var(value.name, TensorStructInfo(self._dimensions.of_input(value), dtype))
            _refuse_giants(param.struct_info)
            params.append(param)
            self._borrowed.add(id(param))
            self._exprs[value.name] = param
        return params

    # --- nodes

    def _walk(self, work: _Work | None, finish: Callable[[], list[Expr]]) -> list[Expr]:
        """Imports nodes in order; returns what `finish` makes of the values then."""
        while work is not None:
            if work.index == len(work.nodes):
                work = work.after
                continue
            proto, opsets = work.nodes[work.index], work.opsets
            rest = _Work(work.nodes, work.index + 1, opsets, work.after)
            self._opsets = opsets
            domain, opset, converter = resolve(proto, opsets)
            _check_node(proto, domain, opset, self._checker(opsets))
            if converter is None:
                body = self._functions.expand(proto, opsets, partial(self._types_of, proto.input))
                work = _Work(body.nodes, 0, body.opsets, rest)
                continue
            node = Node(self, proto, domain, opset)
            taken = self._branch_taken(node)
            if taken is not None:
                names = zip(taken.output, proto.output, strict=False)
                ends = [onnx.helper.make_node("Identity", [inner.name], [outer], proto.name) for inner, outer in names]
                self._define_constants(taken)
                work = _Work(taken.node, 0, opsets, _Work([end for end in ends if end.output[0]], 0, opsets, rest))
                continue
            try:
                self._convert(node, proto, converter)
            except RanksDiffer:
                return self._import_rest_twice(node, rest, finish)
            work = rest
        return finish()

    def _branch_taken(self, node: Node) -> onnx.GraphProto | None:
        """The branch of an If whose condition is known, if its nodes can stand in the place of the If."""
        cond = node.constant(0) if node.op_type == "If" and not node.domain else None
        if cond is None or not cond.size:
            return None
        branch = node.subgraph(BRANCHES[0] if cond.reshape(-1)[0] else BRANCHES[1])
        names = {name for inner in branch.node for name in inner.output} | {t.name for t in branch.initializer}
        # Another branch may have used the same names, which are seen no further than its end.
        free = names.isdisjoint(self._exprs) and names.isdisjoint(self._contents)
        return branch if free and not branch.sparse_initializer else None

    def _checker(self, opsets: Opsets) -> onnx.checker.C.CheckerContext:
        known = self._checkers.get(id(opsets))
        if known is None or known[0] is not opsets:
            known = self._checkers[id(opsets)] = opsets, _checker_context(self._model, opsets)
        return known[1]

    def _import_rest_twice(self, node: Node, rest: _Work, finish: Callable[[], list[Expr]]) -> list[Expr]:
        """An If whose results differ in rank: each branch goes on with the nodes after it, in the ranks it gives."""
        self._n_splits += 1
        if self._n_splits > _MAX_SPLITS:
            raise node.error("too many branches give tensors of different ranks")

        def branch(name: str) -> list[Expr]:
            outer = self._exprs, self._contents, self._dtypes
            self._exprs, self._contents, self._dtypes = dict(outer[0]), dict(outer[1]), dict(outer[2])
            try:
                node.splice(name)
                return self._walk(rest, finish)
            finally:
                self._exprs, self._contents, self._dtypes = outer

        with self.builder.source(node.source), _explained(node):
            return emit_branches(node, [partial(branch, name) for name in BRANCHES], ranks_may_differ=True)

    def graph(self, graph: onnx.GraphProto, arguments: Sequence[Expr], declared: bool) -> list[Expr]:
        """The results of a subgraph, which reads values from outside by their names.

        With `declared`, numbers in the declared shapes of its outputs count where dimensions are not known otherwise.
        """

        def finish() -> list[Expr]:
            results = [self.tensor(value.name) for value in graph.output]
            return list(map(self._as_declared, results, graph.output)) if declared else results

        return self._inside(graph, arguments, finish)

    def _as_declared(self, x: Expr, value: onnx.ValueInfoProto) -> Expr:
        info, dims = x.struct_info, value.type.tensor_type.shape.dim
        if not isinstance(info, TensorStructInfo) or info.shape is None or len(dims) != len(info.shape):
            return x
        wanted = [
            dim.dim_value if dim.HasField("dim_value") and not isinstance(mine, int) else mine
            for mine, dim in zip(info.shape, dims, strict=True)
        ]
        return x if tuple(wanted) == info.shape else self.match_cast(x, TensorStructInfo(wanted, info.dtype))

    def splice(self, graph: onnx.GraphProto, names: Sequence[str]) -> None:
        """The nodes of a subgraph without parameters in place of a node with outputs `names`."""
        found: list[tuple[Expr | None, Content | None, str]] = []
        ends: list[list[Expr]] = []

        def finish() -> list[Expr]:
            for value in graph.output:
                content = self._contents.get(value.name)
                expr = self._exprs.get(value.name) if content is not None else self.tensor(value.name)
                found.append((expr, content, self.dtype(value.name)))
            ends.append([self.tensor(value.name) for value in graph.output])
            return ends[-1]

        results = self._inside(graph, (), finish)
        if not any(results is end for end in ends):  # the rest was imported twice: found are values of one branch
            found = [(expr, None, "") for expr in results]
        for name, (expr, content, dtype) in zip(names, found, strict=False):
            if name and expr is not None:
                self._exprs[name] = expr
            if name and content is not None:
                self._contents[name], self._dtypes[name] = content, dtype

    def _inside(
        self, graph: onnx.GraphProto, arguments: Sequence[Expr], finish: Callable[[], list[Expr]]
    ) -> list[Expr]:
        """Imports the nodes of a subgraph and finishes; what it defines is forgotten at the end."""
        if len(graph.input) != len(arguments):
            raise FrontendError(f"graph {graph.name!r} has {len(graph.input)} inputs, {len(arguments)} are given")
        outer = self._exprs, self._contents, self._dtypes, self._opsets
        self._exprs, self._contents, self._dtypes = dict(outer[0]), dict(outer[1]), dict(outer[2])
        try:
            self._define_constants(graph)
            for value, argument in zip(graph.input, arguments, strict=True):
                self._exprs[value.name] = argument
                self._contents.pop(value.name, None)
            return self._walk(_Work(graph.node, 0, self._opsets, None), finish)
        finally:
            self._exprs, self._contents, self._dtypes, self._opsets = outer

    def _define_constants(self, graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            self._exprs[tensor.name] = Constant(tensor_array(tensor, self.folder))
        for sparse in graph.sparse_initializer:
            self._exprs[sparse.values.name] = Constant(sparse_array(sparse, self.folder))

    def share_memory(self, value: Expr, sources: Iterable[Expr]) -> None:
        """`value` may be one of `sources`."""
        if any(id(source) in self._borrowed for source in sources):
            self._borrowed.add(id(value))

    def _types_of(self, names: Iterable[str]) -> list[onnx.TypeProto]:
        return [self._type_of(name) for name in names]

    def _type_of(self, name: str) -> onnx.TypeProto:
        """The type of a value as ONNX writes it; an absent input has an empty one."""
        proto = onnx.TypeProto()
        if not name:
            return proto
        proto.tensor_type.elem_type = element_code(self.dtype(name))
        content = self._contents.get(name)
        info = self.tensor(name).struct_info if content is None else TensorStructInfo(content.shape)
        if isinstance(info, TensorStructInfo) and info.shape is not None:
            proto.tensor_type.shape.Clear()
            for dim in info.shape:
                entry = proto.tensor_type.shape.dim.add()
                if isinstance(dim, int):
                    entry.dim_value = dim
                else:
                    entry.dim_param = str(dim)
        return proto

    def _convert(self, node: Node, proto: onnx.NodeProto, converter: Converter) -> None:
        with self.builder.source(node.source), _explained(node):
            contents = shape_values.evaluate(node)
            if contents is not None:
                dtypes = [self._content_dtype(node, contents) for _ in contents]
                for name, content, dtype in zip(proto.output, contents, dtypes, strict=False):
                    self._define_content(name, content, dtype)
                return
            result = converter(node)
            if isinstance(result, np.ndarray):
                self._define_content(proto.output[0], result, "int64")
                return
            results = [result] if isinstance(result, Expr) else list(result)
            for i, name in enumerate(proto.output):
                value = results[i] if i < len(results) else None
                if not results and (name in self._exprs or name in self._contents):
                    continue  # spliced
                if name and value is None:
                    raise node.error(f"output {i} ({name}) is not supported")
                if name and value is not None:
                    self._define(node, name, value)

    def _content_dtype(self, node: Node, contents: Sequence[Content]) -> str:
        if node.op_type == "Cast":
            return node.dtype_attr("to")
        if node.op_type in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
            return "bool"
        return self.dtype(node.name_of(1 if node.op_type == "Where" else 0))

    def _define(self, node: Node, name: str, result: Expr) -> None:
        if name in self._exprs or name in self._contents:
            raise node.error(f"value {name!r} is computed twice")
        if not isinstance(result, (Var, Constant)):
            folded = fold(result)
            result = self.emit(result, _hint(name)) if folded is None else folded
        self._exprs[name] = result

    def _define_content(self, name: str, content: Content, dtype: str) -> None:
        if not name:
            return
        if name in self._exprs or name in self._contents:
            raise FrontendError(f"value {name!r} is computed twice")
        if shape_values.is_constant(content):
            self._exprs[name] = Constant(np.array(content.reshape(-1).tolist(), dtype=dtype).reshape(content.shape))
            return
        self._contents[name] = content
        self._dtypes[name] = dtype

    # --- values

    def fresh_dim(self, hint: str, nonnegative: bool = True) -> SymVar:
        """A new symbol, called `hint` if that is free and an identifier."""
        self.fresh_dims.append(self._dimensions.fresh(hint, nonnegative))
        return self.fresh_dims[-1]

    def tensor(self, name: str) -> Expr:
        """The value as an expression."""
        expr = self._exprs.get(name)
        if expr is None:
            if name not in self._contents:
                raise FrontendError(f"value {name!r} is used before it is computed, or never computed")
            expr = self._exprs[name] = self._materialize(self._contents[name], self._dtypes[name])
        return expr

    def dtype(self, name: str) -> str:
        """Element type of the value."""
        if name in self._contents:
            return self._dtypes[name]
        info = self.tensor(name).struct_info
        if not isinstance(info, TensorStructInfo) or info.dtype is None:
            raise FrontendError(f"value {name!r} is not a tensor but {info}")
        return info.dtype

    def constant(self, name: str) -> np.ndarray | None:
        """The values of a constant, None for anything else."""
        if name in self._contents:
            return None
        expr = self.tensor(name)
        return expr.data if isinstance(expr, Constant) else None

    def symbols(self, name: str) -> Content | None:
        """The elements of a value that is known as symbols (not as numbers only)."""
        return self._contents.get(name)

    def content(self, name: str) -> Content | None:
        """The elements of a value that is known as symbols or as numbers."""
        content = self._contents.get(name)
        if content is not None:
            return content
        data = self.constant(name)
        return None if data is None else shape_values.content_of_array(data)

    def read_by_name(self, node: Node, name: str) -> Content:
        """New symbols for the elements of a value; all later readers of the value share them."""
        expr = self.tensor(name)
        content = self.read_at_run_time(node, expr)
        self._contents[name] = content
        self._dtypes[name] = node.dtype(expr)
        return content

    def read_at_run_time(self, node: Node, x: Expr) -> Content:
        """New symbols for the elements of an integer tensor that is computed when the model runs."""
        shape = node.shape(x)
        if len(shape) > 1 or not all(isinstance(dim, int) for dim in shape):
            raise node.error(f"a tensor of shape {shape} cannot be read as a list of integers")
        count = int(shape[0]) if shape else 1  # type: ignore[arg-type]
        if count > _MAX_READ:
            raise node.error(f"{count} integers of run time are too many to be a shape, axes or positions")
        values: list[PrimExpr] = [self.fresh_dim("v", nonnegative=False) for _ in range(count)]
        if values:
            flat = node.reshape(node.cast(x, "int64"), (count,))
            as_shape = self.emit(op.tensor_to_shape(flat))
            self.match_cast(as_shape, ShapeStructInfo(values))
        return shape_values.make_content(values, tuple(map(int, shape)))  # type: ignore[arg-type]

    def _materialize(self, content: Content, dtype: str) -> Expr:
        """Elements that are known as symbols, computed as a tensor after all."""
        nums, dens, floats = zip(*map(_as_ratio, content.flat), strict=True)
        x: Expr = self.emit(op.shape_to_tensor(ShapeExpr(nums)))
        if dtype != "int64":
            x = self.emit(op.cast(x, dtype))
        if any(den != 1 for den in dens):
            x = self.emit(op.div(x, Constant(np.array(dens, dtype))))
        if any(floats):
            x = self.emit(op.add(x, Constant(np.array(floats, dtype))))
        return x if content.ndim == 1 else self.emit(op.reshape(x, content.shape))

    def emit(self, expr: Expr, hint: str = "") -> Var:
        """`expr` bound to a new variable."""
        _refuse_giants(expr.struct_info)
        if not isinstance(expr, Call) or expr.op is not _RESHAPE:
            return self.builder.emit(expr, hint)
        self._check_element_count(expr)
        var = self.builder.emit(expr, hint)
        if id(expr.args[0]) in self._borrowed:
            self._borrowed.add(id(var))
        return var

    def _check_element_count(self, call: Call) -> None:
        """A view may be smaller than what it looks at; the result of Reshape may not, which is checked at run time."""
        source, target = call.args[0].struct_info, call.struct_info
        if not isinstance(source, TensorStructInfo) or not isinstance(target, TensorStructInfo):
            return
        if source.shape is None or target.shape is None:
            return
        before, after = math.prod(source.shape), math.prod(target.shape)
        if prove_equal(before, after) is None:
            self.match_cast(ShapeExpr([after]), ShapeStructInfo([before]))

    def match_cast(self, expr: Expr, info: StructInfo) -> Var:
        """`expr` bound to a new variable, checked at run time to be what `info` says."""
        var = self.builder.match_cast(expr, info)
        if id(expr) in self._borrowed:
            self._borrowed.add(id(var))
        return var

    def _outputs(self, names: Sequence[str]) -> list[Expr]:
        return [self._output(name) for name in names]

    def _output(self, name: str) -> Expr:
        # OWNERSHIP: arguments belong to the caller, who may change them; results must not be views of them.
        expr = self.tensor(name)
        return self.builder.emit_output(op.copy(expr) if id(expr) in self._borrowed else expr, _hint(name))


def _refuse_giants(info: StructInfo | None) -> None:
    """No tensor exceeds the address space; later stages may then add up sizes without care."""
    if isinstance(info, TensorStructInfo) and info.is_static and info.shape and info.dtype:
        numbers = [dim for dim in info.shape if isinstance(dim, int)]
        if math.prod(numbers) * dtype_bytes(info.dtype) > _MAX_BYTES:
            raise FrontendError(f"a tensor of shape {tuple(numbers)} and {info.dtype} is too big for any memory")


def _as_ratio(value: object) -> tuple[Prim, int, float]:
    """An element of a content as an integer over another one, plus a float."""
    if isinstance(value, shape_values.Ratio):
        return value.num, value.den, 0.0
    if isinstance(value, float):
        return 0, 1, value
    assert isinstance(value, (int, PrimExpr))
    return value, 1, 0.0


def _hint(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_") or "v"


def _checker_context(model: onnx.ModelProto, opsets: Opsets) -> onnx.checker.C.CheckerContext:
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version or onnx.IR_VERSION
    context.opset_imports = dict(opsets)
    return context


def _check_node(proto: onnx.NodeProto, domain: str, opset: int, context: onnx.checker.C.CheckerContext) -> None:
    """Arity and attributes as the operator's schema has them."""
    if domain or any(attribute.HasField("g") for attribute in proto.attribute):
        return  # the checker does not know what names a subgraph sees
    try:
        onnx.checker.check_node(proto, context)
    except onnx.checker.ValidationError as error:
        schema = schema_of(domain, proto.op_type, opset)
        if schema is not None and schema.deprecated:
            return  # replaced by a later version, and all the same what the model was written with
        text = " ".join(str(error).split("==>")[0].split())
        raise FrontendError(f"{node_source(proto, opset)}: malformed node: {text}") from error


@contextmanager
def _explained(node: Node) -> Iterator[None]:
    """Errors of operators, and the accidents that a malformed node causes, as errors of the frontend with the node."""
    try:
        yield
    except (FrontendError, InternalError):
        raise
    except CompileError as error:
        raise node.error(str(error)) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise node.error(f"cannot be converted: {type(error).__name__}: {error}") from error
