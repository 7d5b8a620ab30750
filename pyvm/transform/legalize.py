"""Legalization: operators become calls of kernels and builtins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyvm.checked_calls import checked
from pyvm.ir import (
    Binding,
    Call,
    Constant,
    DataflowVar,
    Expr,
    ExternFunc,
    Function,
    GlobalVar,
    IRModule,
    MatchCast,
    PrimExpr,
    ShapeExpr,
    StructInfo,
    TensorStructInfo,
    Tuple,
    TupleGetItem,
    TupleStructInfo,
    Var,
    VarBinding,
    as_expr,
)
from pyvm.ir.nesting import typed_nesting
from pyvm.op.registry import Decompose, KernelCall, Op, PackedCall, View
from vmcore.errors import LoweringError

from .lowered import BORROWS, DESTINATIONS, INPLACE, RESHAPE, alloc_tensor, extern_call
from .rewriter import Rewriter


@checked
@typed_nesting("legalize")
def legalize(module: IRModule) -> IRModule:
    """Every call is of an external function, a function of the module or a closure; results of kernels are allocated.

    A kernel call gets tensors allocated for its results and is followed by nothing: the results are the allocated
    tensors. Dataflow blocks are gone (calls now have effects), fields of known tuples are read directly.
    """
    return Legalizer(module).run()


class Legalizer(Rewriter):
    """The walk of `legalize`; a subclass may lower operators to other functions."""

    def rewrite_function(self, name: str, function: Function) -> Function:
        self._tuples: dict[Var, tuple[Expr, ...]] = {}
        return super().rewrite_function(name, function)

    def keeps_dataflow(self) -> bool:
        return False

    def visit(self, binding: Binding) -> None:
        old_var = binding.var
        binding = self.remap(binding)
        if isinstance(old_var, DataflowVar):
            var = Var(old_var.name, old_var.struct_info)
            self.replace(old_var, var)
            if isinstance(binding, MatchCast):
                binding = MatchCast(var, binding.value, binding.struct_info, binding.source)
            else:
                binding = VarBinding(var, binding.value, binding.source)
        value = binding.value
        if isinstance(binding, MatchCast) or not isinstance(value, (Call, Tuple, TupleGetItem)):
            self.keep(binding)
        elif isinstance(value, Tuple):
            self._tuples[binding.var] = value.fields
            self.keep(binding)
        elif isinstance(value, TupleGetItem):
            fields = self._tuples.get(value.tuple) if isinstance(value.tuple, Var) else None
            if fields is None:
                self.keep(binding)
            else:
                self._forward(old_var, binding, fields[value.index])
        elif isinstance(value.op, ExternFunc):
            if value.attrs.get("dps"):
                self.destination_call(binding, value.op.name, value.args, ())
            else:
                self.keep(binding)
        elif isinstance(value.op, (GlobalVar, Var)):
            self.keep(binding)
        else:
            self.lower_call(old_var, binding, value, value.op)

    def _forward(self, old_var: Var, binding: Binding, leaf: Expr) -> None:
        self.replace(old_var, leaf)
        self.replace(binding.var, leaf)

    def lower_call(self, old_var: Var, binding: Binding, call: Call, op: Op) -> None:
        """Writes what an operator becomes. `binding` is the call with new operands, `old_var` what it was bound to."""
        lowered = op.lowered(call)
        if isinstance(lowered, KernelCall):
            args = [as_expr(arg) for arg in lowered.args]
            self.destination_call(binding, lowered.kernel, args, lowered.inplace)
        elif isinstance(lowered, View):
            self._view(old_var, binding, lowered)
        elif isinstance(lowered, PackedCall):
            packed_args = tuple(as_expr(arg) for arg in lowered.args)
            self.bind(binding, extern_call(lowered.name, packed_args, call.struct_info, {BORROWS: True}))
        else:
            assert isinstance(lowered, Decompose)
            raise LoweringError(f"{op.name} decomposes into other operators; run the pass `decompose` before legalize")

    def _view(self, old_var: Var, binding: Binding, view: View) -> None:
        info = binding.value.struct_info
        base = view.x.struct_info
        if (
            isinstance(info, TensorStructInfo)
            and isinstance(base, TensorStructInfo)
            and info.shape is not None
            and info.shape == base.shape
        ):
            self._forward(old_var, binding, view.x)
            return
        shape = view.shape
        if isinstance(view.x, Constant) and isinstance(shape, ShapeExpr):
            if not any(isinstance(dim, PrimExpr) for dim in shape.values):
                self._forward(old_var, binding, Constant(view.x.data.reshape(shape.values)))  # type: ignore[arg-type]
                return
        self.bind(binding, extern_call(RESHAPE, (view.x, shape), info))

    def destination_call(self, binding: Binding, name: str, args: Iterable[Expr], inplace: tuple[int, ...]) -> None:
        """Allocates the result of a binding and writes the call that fills it."""
        source = binding.source
        outs: list[Expr] = []
        result = self._allocate(binding.value.struct_info, binding, name, outs)
        attrs: dict[str, Any] = {DESTINATIONS: len(outs)}
        if inplace:
            attrs[INPLACE] = tuple(inplace)
        call = extern_call(name, (*args, *outs), None, attrs, source)
        self.keep(VarBinding(Var("_", call.struct_info), call, source))
        if isinstance(result, Tuple):
            self._tuples[binding.var] = result.fields
            self.keep(VarBinding(binding.var, result, source))

    def _allocate(self, info: StructInfo | None, binding: Binding, name: str, outs: list[Expr]) -> Expr:
        """Allocates the tensors of a result; a single tensor takes the variable of the binding."""
        single = binding.value.struct_info is info
        if isinstance(info, TupleStructInfo):
            return Tuple([self._allocate(field, binding, name, outs) for field in info.fields])
        if not isinstance(info, TensorStructInfo) or info.shape is None or info.dtype is None:
            raise LoweringError(
                f"{name}: cannot allocate its result, of which only {info} is known; a match_cast of what it is "
                f"computed from names the sizes" + (f", in {binding.source}" if binding.source else "")
            )
        var = binding.var if single else Var(f"{binding.var.name}_{len(outs)}", info)
        self.keep(VarBinding(var, alloc_tensor(info, binding.source), binding.source))
        outs.append(var)
        return var
