"""Constant folding."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyvm.checked_calls import checked
from pyvm.ir import (
    Binding,
    Call,
    Constant,
    DataTypeImm,
    Expr,
    ExternFunc,
    GlobalVar,
    If,
    IRModule,
    MatchCast,
    NoneImm,
    PrimExpr,
    PrimStructInfo,
    PrimValue,
    SeqExpr,
    ShapeExpr,
    ShapeStructInfo,
    StringImm,
    StructInfo,
    TensorStructInfo,
    Tuple,
    TupleGetItem,
    TupleStructInfo,
    Var,
    dtype_bytes,
    dtype_name,
)
from pyvm.ir.nesting import typed_nesting

from .rewriter import Rewriter

DEFAULT_LIMIT_BYTES = 1 << 20


@checked
@typed_nesting("fold_constants")
def fold_constants(module: IRModule, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> IRModule:
    """No pure operator has only constant arguments, shapes known from struct info are literals, no If is constant.

    Parameters
    ----------
    module : IRModule
    limit_bytes : int
        A result larger than this and larger than all arguments together stays a computation, so that an executable
        does not carry what a fill or a broadcast makes in no time.
    """
    return _FoldConstants(module, limit_bytes).run()


def _is_decided(cond: Expr) -> bool:
    return isinstance(cond, Constant) or (isinstance(cond, PrimValue) and not isinstance(cond.value, PrimExpr))


class _FoldConstants(Rewriter):
    def __init__(self, module: IRModule, limit_bytes: int) -> None:
        super().__init__(module)
        self._limit_bytes = limit_bytes
        self._tuples: dict[Var, Tuple] = {}

    def visit(self, binding: Binding) -> None:
        if isinstance(binding.value, If) and _is_decided(self.leaf(binding.value.cond)):
            self._inline_branch(binding)
            return
        binding = self.remap(binding)
        if isinstance(binding, MatchCast):
            self.keep(binding)
            return
        value = self._folded(binding.value)
        if isinstance(value, (Constant, ShapeExpr, PrimValue)):
            self.replace(binding.var, value)
            return
        if isinstance(value, Tuple):
            self._tuples[binding.var] = value
        if value is binding.value:
            self.keep(binding)
        else:
            self.bind(binding, value)

    def _inline_branch(self, binding: Binding) -> None:
        value = binding.value
        assert isinstance(value, If)
        cond = self.leaf(value.cond)
        truth = bool(cond.data.reshape(-1)[0]) if isinstance(cond, Constant) else bool(cond.value)  # type: ignore[attr-defined]
        branch: SeqExpr = value.true_branch if truth else value.false_branch
        for block in branch.blocks:
            self.rewrite_block(block)
        self.replace(binding.var, self.leaf(branch.body))

    def _folded(self, value: Expr) -> Expr:
        if isinstance(value, TupleGetItem) and isinstance(value.tuple, Var) and value.tuple in self._tuples:
            field = self._tuples[value.tuple].fields[value.index]
            return field if isinstance(field, (Constant, ShapeExpr, PrimValue)) else value
        if not isinstance(value, Call) or isinstance(value.op, (ExternFunc, GlobalVar, Var)) or not value.op.is_pure:
            return value
        known = known_value(value.struct_info)
        if known is not None:
            return known
        args: list[Any] = []
        for arg in value.args:
            concrete = concrete_value(arg)
            if concrete is _UNKNOWN:
                return value
            args.append(concrete)
        given_bytes = sum(arg.nbytes for arg in args if isinstance(arg, np.ndarray))
        result_bytes = _result_bytes(value.struct_info)
        if result_bytes is None or result_bytes > max(self._limit_bytes, given_bytes):
            return value
        try:
            return as_literal(value.op.evaluate(value.attrs, *args), value)
        except (ArithmeticError, ValueError, LookupError, TypeError, MemoryError):
            return value  # an index out of range, an integer divided by zero: an error when, and only if, it runs


_UNKNOWN = object()


def concrete_value(arg: Expr) -> Any:
    """What `Op.evaluate` takes for this argument, or a private marker if it is not known."""
    if isinstance(arg, Constant):
        return arg.data
    if isinstance(arg, ShapeExpr):
        return _UNKNOWN if any(isinstance(dim, PrimExpr) for dim in arg.values) else arg.values
    if isinstance(arg, PrimValue):
        return _UNKNOWN if isinstance(arg.value, PrimExpr) else arg.value
    if isinstance(arg, (StringImm, DataTypeImm)):
        return arg.value
    return None if isinstance(arg, NoneImm) else _UNKNOWN


def known_value(info: StructInfo | None) -> Expr | None:
    """The literal that struct info alone implies: a shape or a scalar whose values it states, even symbolic ones."""
    if isinstance(info, ShapeStructInfo) and info.values is not None:
        return ShapeExpr(info.values)
    if isinstance(info, PrimStructInfo) and info.value is not None:
        return PrimValue(info.value)
    return None


def _result_bytes(info: StructInfo | None) -> int | None:
    if isinstance(info, TensorStructInfo):
        if not info.is_static:
            return None
        assert info.shape is not None and info.dtype is not None
        total = dtype_bytes(info.dtype)
        for dim in info.shape:
            total *= int(dim)  # type: ignore[arg-type]
        return total
    if isinstance(info, TupleStructInfo):
        sizes = [_result_bytes(field) for field in info.fields]
        return None if None in sizes else sum(sizes)  # type: ignore[arg-type]
    return 0


def as_literal(result: Any, call: Call) -> Expr:
    """The result of `Op.evaluate` as an expression; `call` itself if it does not agree with the call's struct info."""
    info = call.struct_info
    if isinstance(result, np.ndarray) and isinstance(info, TensorStructInfo):
        agrees = dtype_name(result.dtype) == info.dtype and tuple(result.shape) == info.shape
        return Constant(result) if agrees else call
    if isinstance(result, tuple) and isinstance(info, TupleStructInfo):
        parts = [
            as_literal(part, Call(call.op, call.args, call.attrs, field))
            for part, field in zip(result, info.fields, strict=True)
        ]
        return call if any(isinstance(part, Call) for part in parts) else Tuple(parts)
    if isinstance(result, tuple) and isinstance(info, ShapeStructInfo):
        return ShapeExpr(result)
    if isinstance(result, (bool, int, float, np.generic)) and isinstance(info, PrimStructInfo):
        return PrimValue(result.item() if isinstance(result, np.generic) else result)
    return call
