"""Symbolic sizes at run time: the shape heap."""

from __future__ import annotations

from collections import ChainMap

from pyvm.checked_calls import checked
from pyvm.ir import (
    Binding,
    Call,
    CallableStructInfo,
    DataTypeImm,
    Expr,
    Extremum,
    FloorDiv,
    FloorMod,
    Function,
    If,
    IRModule,
    MatchCast,
    NoneImm,
    ObjectStructInfo,
    Poly,
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
    TupleStructInfo,
    Var,
    VarBinding,
    struct_info_vars,
)
from pyvm.ir.nesting import typed_nesting
from pyvm.ir.rules import defined_symbols
from pyvm.ir.struct_info import erase_unknown
from vmcore.errors import LoweringError

from .lowered import CHECK_UPPER_BOUND, extern_call, upper_bounds
from .rewriter import Rewriter

# How match_shape, make_shape and their kin read a (code, register) pair.
_CODE_IMMEDIATE = 0  # match: equals the number; make: is the number
_CODE_HEAP = 1  # match: is stored in the slot; make: is read from it
_CODE_IGNORE = 2
_CODE_EQUALS_HEAP = 3

# The postfix program of pyvm.builtin.eval_shape_expr: (opcode, operand) pairs.
_PUSH, _LOAD, _ADD, _SUB, _MUL, _FLOOR_DIV, _FLOOR_MOD, _MIN, _MAX = range(9)
_MAX_STACK_DEPTH = 64

_INT64_MAX = 2**63 - 1


@checked
@typed_nesting("lower_shapes")
def lower_shapes(module: IRModule) -> IRModule:
    """No value is symbolic: parameters and match_casts are checked by builtins, which store the symbols.

    Each function with symbols has a shape heap: one slot per symbol and per size that is computed from them. A size
    is computed once, before its first use, and is known in all that follows it, branches included.
    """
    functions = {name: _LowerShapes(module, name).run_function() for name in module.functions}
    return IRModule(functions, module.attrs)


class _LowerShapes(Rewriter):
    def __init__(self, module: IRModule, name: str) -> None:
        super().__init__(module)
        self._name = name
        self._slots: dict[Prim, int] = {}
        self._stored: ChainMap[Prim, bool] = ChainMap()  # expressions whose slot holds their value here
        self._shapes: ChainMap[tuple[Prim, ...], Var] = ChainMap()
        self._heap: Var | None = None
        params = module[name].params
        self._param_symbols = frozenset(symbol for param in params for symbol in defined_symbols(param.struct_info))
        self._upper_bounds = upper_bounds(module, module[name])
        self._unchecked: list[SymVar] = []  # symbols with an upper bound, stored but not compared with it yet

    def run_function(self) -> Function:
        """The function without symbols."""
        return self.rewrite_function(self._name, self.module[self._name])

    def rewrite_sequence(self, seq: SeqExpr) -> SeqExpr:
        stored, shapes = self._stored, self._shapes
        self._stored, self._shapes = stored.new_child(), shapes.new_child()
        try:
            if seq is self.module[self._name].body:
                return self._rewrite_body(seq)
            return self._with_result(super().rewrite_sequence(seq))
        finally:
            self._stored, self._shapes = stored, shapes

    def _rewrite_body(self, seq: SeqExpr) -> SeqExpr:
        """The function body: parameter checks first; the heap before all, once its size is known."""
        self._heap = Var("shape_heap", ObjectStructInfo())
        self.bb.open_scope()
        self._check_params(self.module[self._name].params)
        checks = self.bb.close_scope(PrimValue(0))
        rest = self._with_result(super().rewrite_sequence(seq))
        blocks = [*checks.blocks, *rest.blocks]
        if self._slots:
            size = PrimValue(len(self._slots))
            heap = VarBinding(self._heap, extern_call("vm.builtin.alloc_shape_heap", (size,)))
            self.bb.open_scope()
            self.bb.emit_binding(heap)
            blocks[:0] = self.bb.close_scope(PrimValue(0)).blocks
        return SeqExpr(blocks, rest.body)

    def _with_result(self, seq: SeqExpr) -> SeqExpr:
        """The sequence, with its value computed at its end if the value is a symbolic shape or scalar."""
        if not _is_symbolic(seq.body):
            return seq
        self.bb.open_scope()
        with self.bb.source(None):
            value = self._concrete(seq.body)
        end = self.bb.close_scope(value)
        return SeqExpr([*seq.blocks, *end.blocks], end.body)

    def keep(self, binding: Binding) -> None:
        info = binding.var.struct_info
        if info is not None and not struct_info_vars(info) <= self._param_symbols:
            # The match_cast that defined the symbol is gone, so nothing may speak of it any more.
            var = Var(binding.var.name, erase_unknown(info, self._param_symbols))
            self.replace(binding.var, var)
            binding = VarBinding(var, binding.value, binding.source)
        super().keep(binding)

    def visit(self, binding: Binding) -> None:
        if isinstance(binding, MatchCast):
            value = self._concrete(self.leaf(binding.value))
            self._match(value, binding.struct_info, self._context("match_cast", binding.var, binding.struct_info))
            if isinstance(value, Var):
                self.replace(binding.var, value)
            else:
                self.bind(binding, value)
            return
        value = binding.value
        if isinstance(value, If) and _is_symbolic(value.cond):
            cond = self._concrete(value.cond)
            value = If(cond, value.true_branch, value.false_branch, value.struct_info)
            binding = VarBinding(binding.var, value, binding.source)
        binding = self.remap(binding)
        value = binding.value
        if isinstance(value, If) or not _has_symbolic_operand(value):
            self.keep(binding)
        elif isinstance(value, Call):
            args = tuple(map(self._concrete, value.args))
            self.bind(binding, Call(value.op, args, value.attrs, value.struct_info, value.source))
        elif isinstance(value, Tuple):
            self.bind(binding, Tuple(map(self._concrete, value.fields)))
        else:
            self.replace(binding.var, self._concrete(value))

    # --- values of symbolic expressions

    def _concrete(self, leaf: Expr) -> Expr:
        """A symbolic shape or scalar as a variable that holds its value; other leaves as they are."""
        if isinstance(leaf, PrimValue) and isinstance(leaf.value, PrimExpr):
            args = (self._heap_operand(), PrimValue(_CODE_HEAP), PrimValue(self._slot_with(leaf.value)))
            return self._emit("vm.builtin.make_prim_value", args, "dim", leaf.struct_info)
        if isinstance(leaf, ShapeExpr) and _is_symbolic(leaf):
            known = self._shapes.get(leaf.values)
            if known is None:
                pairs: list[Expr] = []
                for dim in leaf.values:
                    if isinstance(dim, PrimExpr):
                        pairs += (PrimValue(_CODE_HEAP), PrimValue(self._slot_with(dim)))
                    else:
                        pairs += (PrimValue(_CODE_IMMEDIATE), PrimValue(dim))
                n_dims = PrimValue(len(leaf.values))
                known = self._emit(
                    "vm.builtin.make_shape", (self._heap_operand(), n_dims, *pairs), "shape", leaf.struct_info
                )
                self._shapes[leaf.values] = known
            return known
        return leaf

    def _slot_with(self, value: PrimExpr) -> int:
        """The slot that holds `value`, computed here if it was not before."""
        slot = self._slots.setdefault(value, len(self._slots))
        if value not in self._stored:
            if isinstance(value, SymVar):
                raise LoweringError(f"@{self._name}: no parameter and no match_cast before this gives {value} a value")
            program: list[int] = []
            if self._compile(value, program) > _MAX_STACK_DEPTH:
                raise LoweringError(f"@{self._name}: the size {value} is too deeply nested")
            args = (self._heap_operand(), PrimValue(slot), ShapeExpr(program))
            self._emit("pyvm.builtin.eval_shape_expr", args, "_", None)
            self._stored[value] = True
        return slot

    def _compile(self, value: Prim, program: list[int]) -> int:
        """Appends the postfix program of `value`; returns the stack depth it needs."""
        if isinstance(value, int):
            program += (_PUSH, value)
            return 1
        if value in self._stored or isinstance(value, SymVar):
            program += (_LOAD, self._slot_with(value))
            return 1
        if isinstance(value, (FloorDiv, FloorMod)):
            return self._chain([value.a, value.b], _FLOOR_DIV if isinstance(value, FloorDiv) else _FLOOR_MOD, program)
        if isinstance(value, Extremum):
            return self._chain(list(value.args), _MIN if value.kind == "min" else _MAX, program)
        assert isinstance(value, Poly)
        depth = 0
        for index, (mono, coeff) in enumerate(value.terms.items()):
            negated = index > 0 and coeff < 0
            factors: list[Prim] = [atom for atom, power in mono for _ in range(power)]
            scale = -coeff if negated else coeff
            if scale != 1 or not factors:
                factors.append(scale)
            depth = max(depth, (index > 0) + self._chain(factors, _MUL, program))
            if index:
                program += (_SUB if negated else _ADD, 0)
        return depth

    def _chain(self, values: list[Prim], opcode: int, program: list[int]) -> int:
        depth = self._compile(values[0], program)
        for value in values[1:]:
            depth = max(depth, 1 + self._compile(value, program))
            program += (opcode, 0)
        return depth

    # --- checks

    def _check_params(self, params: tuple[Var, ...]) -> None:
        later: list[tuple[Expr, StructInfo, StringImm]] = []
        for index, param in enumerate(params):
            context = self._context(f"param[{index}]", param, param.struct_info)
            self._check_kind(param, param.struct_info, context, later, trusted=None)
            self._check_bounds(context)
        # Sizes computed from symbols can be compared only when all parameters have stored theirs.
        self._compare_computed(later)

    def _match(self, value: Expr, info: StructInfo, context: StringImm) -> None:
        later: list[tuple[Expr, StructInfo, StringImm]] = []
        self._check_kind(value, info, context, later, trusted=value.struct_info)
        self._check_bounds(context)
        self._compare_computed(later)

    def _check_bounds(self, context: StringImm) -> None:
        """Emits the comparison of symbols just stored with their upper bounds: memory was planned with these."""
        for symbol in self._unchecked:
            pair = PrimValue(self._slots[symbol]), PrimValue(self._upper_bounds[symbol.name])
            args = (self._heap_operand(), *pair, StringImm(symbol.name), context)
            self._emit(CHECK_UPPER_BOUND, args, "_", None)
        self._unchecked.clear()

    def _compare_computed(self, later: list[tuple[Expr, StructInfo, StringImm]]) -> None:
        for value, info, context in later:
            if isinstance(info, PrimStructInfo):
                assert isinstance(info.value, PrimExpr)
                pair: tuple[Expr, ...] = PrimValue(_CODE_EQUALS_HEAP), PrimValue(self._slot_with(info.value))
                self._emit("vm.builtin.match_prim_value", (value, self._heap_operand(), *pair, context), "_", None)
                continue
            pairs: list[Expr] = []
            dims = _dims_of(info)
            for dim in dims:
                if isinstance(dim, PrimExpr) and not isinstance(dim, SymVar):
                    pairs += (PrimValue(_CODE_EQUALS_HEAP), PrimValue(self._slot_with(dim)))
                else:
                    pairs += (PrimValue(_CODE_IGNORE), PrimValue(0))
            args = (value, self._heap_operand(), PrimValue(len(dims)), *pairs, context)
            self._emit("vm.builtin.match_shape", args, "_", None)

    def _check_kind(
        self,
        value: Expr,
        info: StructInfo | None,
        context: StringImm,
        later: list[tuple[Expr, StructInfo, StringImm]],
        trusted: StructInfo | None,
    ) -> None:
        """Emits the checks that `value` has `info`; `trusted` is what is known about it already."""
        if info is None or info == trusted:
            self._store_known(info)
            return
        if isinstance(info, TensorStructInfo):
            known = trusted if isinstance(trusted, TensorStructInfo) else TensorStructInfo()
            new_rank = info.ndim >= 0 and info.ndim != known.ndim
            new_dtype = info.dtype is not None and info.dtype != known.dtype
            if new_rank or new_dtype or not isinstance(trusted, TensorStructInfo):
                dtype: tuple[Expr, ...] = () if info.dtype is None else (DataTypeImm(info.dtype),)
                self._emit("vm.builtin.check_tensor_info", (value, PrimValue(info.ndim), *dtype, context), "_", None)
            if info.shape is not None:
                self._match_dims(value, info, info.shape, known.shape, context, later)
        elif isinstance(info, ShapeStructInfo):
            if not isinstance(trusted, ShapeStructInfo) or (info.ndim >= 0 and info.ndim != trusted.ndim):
                self._emit("vm.builtin.check_shape_info", (value, PrimValue(info.ndim), context), "_", None)
            if info.values is not None:
                known_values = trusted.values if isinstance(trusted, ShapeStructInfo) else None
                self._match_dims(value, info, info.values, known_values, context, later)
        elif isinstance(info, PrimStructInfo):
            if not isinstance(trusted, PrimStructInfo) or trusted.dtype != info.dtype:
                self._emit("vm.builtin.check_prim_value_info", (value, DataTypeImm(info.dtype), context), "_", None)
            self._match_scalar(value, info, context, later)
        elif isinstance(info, TupleStructInfo):
            known_fields = trusted.fields if isinstance(trusted, TupleStructInfo) else None
            if known_fields is None or len(known_fields) != len(info.fields):
                known_fields = None  # a cast to another length is refused when it runs
                self._emit("vm.builtin.check_tuple_info", (value, PrimValue(len(info.fields)), context), "_", None)
            for index, inner in enumerate(info.fields):
                if isinstance(inner, ObjectStructInfo):
                    continue
                known_field = known_fields[index] if known_fields else None
                item = self._emit("vm.builtin.tuple_getitem", (value, PrimValue(index)), "field", inner)
                self._check_kind(item, inner, context, later, known_field)
        elif isinstance(info, CallableStructInfo) and not isinstance(trusted, CallableStructInfo):
            self._emit("vm.builtin.check_func_info", (value, context), "_", None)

    def _store_known(self, info: StructInfo | None) -> None:
        """Nothing to check; the symbols must have been stored by whoever established `info`."""
        for dim in _dims_of(info):
            if isinstance(dim, SymVar):
                self._slot_with(dim)

    def _match_dims(
        self,
        value: Expr,
        info: StructInfo,
        dims: tuple[Prim, ...],
        known: tuple[Prim, ...] | None,
        context: StringImm,
        later: list[tuple[Expr, StructInfo, StringImm]],
    ) -> None:
        if known is not None and len(known) != len(dims):
            known = None  # a cast to another rank is refused when it runs
        pairs: list[Expr] = []
        checks = False
        computed = False
        uses_heap = False
        for index, dim in enumerate(dims):
            code, register = _CODE_IGNORE, 0
            if known is not None and known[index] == dim and (isinstance(dim, int) or dim in self._stored):
                pass
            elif isinstance(dim, SymVar):
                code, register = self._store_or_compare(dim)
                uses_heap = True
            elif isinstance(dim, PrimExpr):
                computed = True
            else:
                code, register = _CODE_IMMEDIATE, dim
            checks = checks or code != _CODE_IGNORE
            pairs += (PrimValue(code), PrimValue(register))
        # The rank of a tensor without dimensions was compared by the kind check, where one was needed.
        if checks:
            heap: Expr = self._heap_operand() if uses_heap else NoneImm()
            self._emit("vm.builtin.match_shape", (value, heap, PrimValue(len(dims)), *pairs, context), "_", None)
        if computed:
            later.append((value, info, context))

    def _match_scalar(
        self,
        value: Expr,
        info: PrimStructInfo,
        context: StringImm,
        later: list[tuple[Expr, StructInfo, StringImm]],
    ) -> None:
        wanted = info.value
        if isinstance(wanted, SymVar):
            code, register = self._store_or_compare(wanted)
            pair = PrimValue(code), PrimValue(register)
            self._emit("vm.builtin.match_prim_value", (value, self._heap_operand(), *pair, context), "_", None)
        elif isinstance(wanted, PrimExpr):
            later.append((value, info, context))
        elif isinstance(wanted, int):
            pair = PrimValue(_CODE_IMMEDIATE), PrimValue(int(wanted))
            self._emit("vm.builtin.match_prim_value", (value, NoneImm(), *pair, context), "_", None)

    def _store_or_compare(self, symbol: SymVar) -> tuple[int, int]:
        slot = self._slots.setdefault(symbol, len(self._slots))
        if symbol in self._stored:
            return _CODE_EQUALS_HEAP, slot
        self._stored[symbol] = True
        if symbol.name in self._upper_bounds:
            self._unchecked.append(symbol)
        return _CODE_HEAP, slot

    # --- helpers

    def _heap_operand(self) -> Expr:
        assert self._heap is not None
        return self._heap

    def _context(self, where: str, var: Var, info: StructInfo | None) -> StringImm:
        return StringImm(f"ErrorContext(fn={self._name}, loc={where}, param={var.name}, annotation={info}) ")

    def _emit(self, name: str, args: tuple[Expr, ...], hint: str, info: StructInfo | None) -> Var:
        call = extern_call(name, args, info)
        var = Var("_" if hint == "_" else self.bb.unique_name(hint), call.struct_info)
        self.keep(VarBinding(var, call, self.bb.current_source))
        kept = self.leaf(var)
        assert isinstance(kept, Var)
        return kept


def _dims_of(info: StructInfo | None) -> tuple[Prim, ...]:
    if isinstance(info, TensorStructInfo):
        return info.shape or ()
    return info.values or () if isinstance(info, ShapeStructInfo) else ()


def _is_symbolic(leaf: Expr) -> bool:
    if isinstance(leaf, ShapeExpr):
        return any(isinstance(dim, PrimExpr) for dim in leaf.values)
    return isinstance(leaf, PrimValue) and isinstance(leaf.value, PrimExpr)


def _has_symbolic_operand(value: Expr) -> bool:
    if isinstance(value, Call):
        return any(map(_is_symbolic, value.args))
    if isinstance(value, Tuple):
        return any(map(_is_symbolic, value.fields))
    return _is_symbolic(value)
