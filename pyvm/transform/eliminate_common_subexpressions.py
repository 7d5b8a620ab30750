"""Common subexpression elimination."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Hashable
from typing import Any

import numpy as np

from pyvm.checked_calls import checked
from pyvm.ir import (
    Binding,
    Call,
    Constant,
    DataflowVar,
    DataTypeImm,
    Expr,
    Function,
    IRModule,
    NoneImm,
    PrimValue,
    SeqExpr,
    ShapeExpr,
    StringImm,
    Tuple,
    TupleGetItem,
    Var,
    VarBinding,
)
from pyvm.ir.nesting import typed_nesting
from pyvm.ir.rules import is_pure

from .rewriter import Rewriter

_SMALL_CONSTANT_BYTES = 64


@checked
@typed_nesting("eliminate_common_subexpressions")
def eliminate_common_subexpressions(module: IRModule) -> IRModule:
    """No pure value is computed twice where one computation is visible from the other.

    Branches see what was computed before their If, not each other.
    """
    return _EliminateCommonSubexpressions(module).run()


class _EliminateCommonSubexpressions(Rewriter):
    def rewrite_function(self, name: str, function: Function) -> Function:
        self._known: ChainMap[Hashable, Var] = ChainMap()
        return super().rewrite_function(name, function)

    def rewrite_sequence(self, seq: SeqExpr) -> SeqExpr:
        outer = self._known
        self._known = outer.new_child()
        try:
            return super().rewrite_sequence(seq)
        finally:
            self._known = outer

    def visit(self, binding: Binding) -> None:
        binding = self.remap(binding)
        if isinstance(binding, VarBinding) and isinstance(binding.value, (Call, Tuple, TupleGetItem)):
            key = _key(binding.value)
            if key is not None:
                # A dataflow variable means nothing outside its block, hence the block in its key.
                scoped = key, self._block
                known = self._known.get(key)
                if known is None and isinstance(binding.var, DataflowVar):
                    known = self._known.get(scoped)
                if known is not None:
                    self.replace(binding.var, known)
                    return
                self._known[scoped if isinstance(binding.var, DataflowVar) else key] = binding.var
        self.keep(binding)


def _key(value: Expr) -> Hashable | None:
    """Equal for equal computations; None for one that must not be merged."""
    if isinstance(value, Tuple):
        return ("tuple", *map(_leaf_key, value.fields))
    if isinstance(value, TupleGetItem):
        return "field", _leaf_key(value.tuple), value.index
    assert isinstance(value, Call)
    if not is_pure(value):
        return None
    attrs = tuple((name, freeze(value.attrs[name])) for name in sorted(value.attrs))
    return ("call", value.op, attrs, value.struct_info if value.attrs.get("dps") else None, *map(_leaf_key, value.args))


def _leaf_key(leaf: Expr) -> Hashable:
    if isinstance(leaf, Constant):
        data = leaf.data
        if data.nbytes <= _SMALL_CONSTANT_BYTES:
            return "const", str(data.dtype), data.shape, data.tobytes()
        # A large constant is the same if it is the same memory: comparing the bytes of all weights would cost more.
        return "memory", str(data.dtype), data.shape, data.__array_interface__["data"][0]
    if isinstance(leaf, ShapeExpr):
        return "shape", leaf.values
    if isinstance(leaf, PrimValue):
        return "prim", type(leaf.value).__name__, str(leaf.value)  # text: 0.0 and -0.0 are different, nan is itself
    if isinstance(leaf, (StringImm, DataTypeImm)):
        return type(leaf).__name__, leaf.value
    if isinstance(leaf, NoneImm):
        return "none"
    return leaf  # a variable or a name


def freeze(value: Any) -> Hashable:
    """An attribute as something hashable that is equal for equal attributes, types included."""
    if isinstance(value, (tuple, list)):
        return tuple(map(freeze, value))
    if isinstance(value, dict):
        return tuple((key, freeze(value[key])) for key in sorted(value))
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, Expr):
        return _leaf_key(value)
    return type(value).__name__, str(value) if isinstance(value, float) else value
