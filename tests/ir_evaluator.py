"""Runs an IR module with the numpy references of its operators: an oracle independent of lowering and the VM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pyvm.frontend.onnx.model_file import numpy_dtype
from pyvm.ir import (
    Call,
    Constant,
    DataTypeImm,
    Expr,
    ExternFunc,
    GlobalVar,
    If,
    IRModule,
    MatchCast,
    Prim,
    PrimExpr,
    PrimStructInfo,
    PrimValue,
    SeqExpr,
    ShapeExpr,
    ShapeStructInfo,
    StringImm,
    StructInfo,
    SymVar,
    TensorStructInfo,
    Tuple,
    TupleGetItem,
    Var,
    evaluate,
)
from pyvm.op.registry import Op, get_op
from pyvm.op.resizing import RESIZE_COORDINATES, RESIZE_MODES, RESIZE_ROUNDINGS

# Functions that programs of the tests call by name, on arrays.
PACKED: dict[str, Callable[..., Any]] = {
    "pyvm.builtin.stack_push": lambda stack, n, row, *_: np.concatenate([stack[: int(n)], row[None]]),
    "pyvm.builtin.stack_rows": lambda stack, n, reverse: stack[: int(n)][:: -1 if reverse else 1],
}


def run_module(module: IRModule, inputs: Mapping[str, Any], name: str = "main") -> list[Any]:
    """The results of a function on arrays given by parameter name."""
    function = module[name]
    frame = _Frame(module)
    for param in function.params:
        value = inputs[param.name]
        frame.values[id(param)] = value
        assert param.struct_info is not None
        frame.match(param.struct_info, value, f"parameter {param.name}")
    result = frame.sequence(function.body)
    return list(result) if isinstance(result, tuple) else [result]


class _Frame:
    def __init__(self, module: IRModule) -> None:
        self.module = module
        self.values: dict[int, Any] = {}
        self.symbols: dict[str, int] = {}

    def sequence(self, seq: SeqExpr) -> Any:
        for binding in seq.bindings():
            value = self.expr(binding.value)
            if isinstance(binding, MatchCast):
                self.match(binding.struct_info, value, binding.var.name)
            elif isinstance(binding.var.struct_info, TensorStructInfo):
                # What was inferred must hold: this is where a wrong infer rule shows.
                self.match(binding.var.struct_info, value, f"{binding.var.name} of {binding.source}", define=False)
            self.values[id(binding.var)] = value
        return self.expr(seq.body)

    def prim(self, value: Prim) -> int:
        return evaluate(value, self.symbols)

    def match(self, info: StructInfo, value: Any, what: str, define: bool = True) -> None:
        if isinstance(info, TensorStructInfo):
            assert isinstance(value, np.ndarray), f"{what}: {type(value)} instead of {info}"
            assert info.dtype in (None, value.dtype.name), f"{what}: {value.dtype} instead of {info}"
            self._match_dims(info.shape, value.shape, what, define)
        elif isinstance(info, ShapeStructInfo):
            self._match_dims(info.values, value, what, define)
        elif isinstance(info, PrimStructInfo) and isinstance(info.value, (int, PrimExpr)):
            self._match_dims((info.value,), (value,), what, define)

    def _match_dims(self, dims: Any, actual: Any, what: str, define: bool) -> None:
        if dims is None:
            return
        assert len(dims) == len(actual), f"{what}: {tuple(actual)} instead of {dims}"
        for dim, size in zip(dims, actual, strict=True):
            if define and isinstance(dim, SymVar):
                self.symbols.setdefault(dim.name, size)
        for dim, size in zip(dims, actual, strict=True):
            assert self.prim(dim) == size, f"{what}: {tuple(actual)} instead of {dims} with {self.symbols}"

    def expr(self, expr: Expr) -> Any:
        if isinstance(expr, Var):
            return self.values[id(expr)]
        if isinstance(expr, Constant):
            return expr.data
        if isinstance(expr, ShapeExpr):
            return tuple(map(self.prim, expr.values))
        if isinstance(expr, PrimValue):
            return self.prim(expr.value) if isinstance(expr.value, PrimExpr) else expr.value
        if isinstance(expr, (StringImm, DataTypeImm)):
            return expr.value
        if isinstance(expr, Tuple):
            return tuple(self.expr(field) for field in expr.fields)
        if isinstance(expr, TupleGetItem):
            return self.expr(expr.tuple)[expr.index]
        if isinstance(expr, If):
            return self.sequence(expr.true_branch if np.all(self.expr(expr.cond)) else expr.false_branch)
        assert isinstance(expr, Call), f"cannot evaluate a {type(expr).__name__}"
        args = [self.expr(arg) for arg in expr.args]
        if isinstance(expr.op, Op):
            return _reference(expr, args)
        if isinstance(expr.op, GlobalVar):
            function = self.module[expr.op]
            named = {param.name: arg for param, arg in zip(function.params, args, strict=True)}
            results = run_module(self.module, named, expr.op.name)
            return results[0] if len(results) == 1 else tuple(results)
        assert isinstance(expr.op, ExternFunc)
        if expr.op.name in PACKED:
            return PACKED[expr.op.name](*args)
        info = expr.struct_info
        assert isinstance(info, TensorStructInfo) and info.shape is not None
        return _kernel(expr.op.name, args, tuple(map(self.prim, info.shape)))


def _reference(call: Call, args: list[Any]) -> Any:
    """The operator's numpy reference; bfloat16, which numpy does not compute in, goes through float32."""
    assert isinstance(call.op, Op)
    wide = [x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype.name == "bfloat16" else x for x in args]
    if call.op.name == "cast" or all(new is old for new, old in zip(wide, args, strict=True)):
        return call.op.evaluate(call.attrs, *args)
    result = call.op.evaluate(call.attrs, *wide)
    info = call.struct_info
    if isinstance(info, TensorStructInfo) and info.dtype == "bfloat16":
        return np.asarray(result).astype(numpy_dtype("bfloat16"))
    return result


def _kernel(name: str, args: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    """The kernels that the frontend calls directly, because their arguments are only known at run time."""
    short = name.removeprefix("kernel.")
    reference = get_op(short).evaluate
    if short == "broadcast_to":
        return reference({}, *args, shape)
    if short.startswith("reduce_"):
        x, axes = args
        return np.asarray(reference({"axes": axes, "keepdims": True}, x)).reshape(shape)
    if short == "strided_slice":
        x, begins, steps = args
        return reference({"steps": steps}, x, begins, shape)
    if short == "cumsum":
        x, axis, exclusive, reverse = args
        return reference({"axis": axis, "exclusive": bool(exclusive), "reverse": bool(reverse)}, x)
    if short == "trilu":
        x, k, upper = args
        return reference({"k": k, "upper": bool(upper)}, x)
    if short == "resize":
        x, *codes, cubic_a, scales = args
        tables = (RESIZE_MODES, RESIZE_COORDINATES, RESIZE_ROUNDINGS)
        names = [next(k for k, v in table.items() if v == code) for table, code in zip(tables, codes, strict=True)]
        attrs = dict(zip(("mode", "coordinate_mode", "nearest_mode"), names, strict=True))
        return reference({**attrs, "cubic_a": cubic_a, "scales": tuple(scales)}, x, shape)
    return reference({}, *args)  # elementwise
