"""Lambda lifting: local functions become functions of the module."""

from __future__ import annotations

from pyvm.checked_calls import checked
from pyvm.ir import (
    Binding,
    Call,
    CallableStructInfo,
    Expr,
    Function,
    GlobalVar,
    If,
    IRModule,
    MatchCast,
    PrimStructInfo,
    PrimValue,
    SeqExpr,
    ShapeExpr,
    StructInfo,
    SymVar,
    Tuple,
    TupleGetItem,
    Var,
    VarBinding,
    free_vars,
    struct_info_vars,
)
from pyvm.ir.expr import BindingBlock
from pyvm.ir.nesting import typed_nesting
from pyvm.ir.rules import MAKE_CLOSURE, defined_symbols

from .lowered import extern_call

_Local = tuple[str, tuple[Var | SymVar, ...]]  # name in the module, and what the function captures


@checked
@typed_nesting("lambda_lift")
def lambda_lift(module: IRModule) -> IRModule:
    """There are no local functions: each is a function of the module whose last parameters are what it captured.

    Where it is called by the name it was bound to, the call passes the captured values; where it is a value, there is
    a closure (`vm.builtin.make_closure`) with them. Symbols that a local function reads and none of its parameters
    defines are captured as integers.
    """
    if not any(_has_local_functions(function.body) for function in module.functions.values()):
        return module
    lifter = _Lifter(module)
    for name, function in module.functions.items():
        lifter.functions[name] = lifter.function(name, function, {}, {})
    return IRModule(lifter.functions, module.attrs)


def _has_local_functions(seq: SeqExpr) -> bool:
    for binding in seq.bindings():
        value = binding.value
        if isinstance(value, Function):
            return True
        if isinstance(value, If) and any(map(_has_local_functions, (value.true_branch, value.false_branch))):
            return True
    return False


class _Lifter:
    def __init__(self, module: IRModule) -> None:
        # Filled in the order of the module; a lifted function comes before the one it was in.
        self.functions: dict[str, Function] = {}
        self._taken = set(module.functions)
        self._name = ""
        self._locals: dict[Var, _Local] = {}
        self._renamed: dict[Var, Expr] = {}  # captured variable -> parameter of the lifted function
        self._out: list[Binding] = []

    def function(self, name: str, function: Function, renamed: dict[Var, Expr], locals_: dict[Var, _Local]) -> Function:
        """`function` without local functions, which are added to the module."""
        saved = self._name, self._renamed, self._locals, self._out
        self._name, self._renamed, self._locals = name, renamed, dict(locals_)
        body = self._sequence(function.body)
        self._name, self._renamed, self._locals, self._out = saved
        return function if body is function.body else function.with_body(body)

    def _sequence(self, seq: SeqExpr) -> SeqExpr:
        outer = self._out
        blocks: list[BindingBlock] = []
        for block in seq.blocks:
            self._out = []
            for binding in block.bindings:
                self._binding(binding)
            blocks.append(type(block)(self._out))
        self._out = []
        body = self._leaf(seq.body)
        if self._out:
            blocks.append(BindingBlock(self._out))
        self._out = outer
        return SeqExpr(blocks, body)

    def _binding(self, binding: Binding) -> None:
        value = binding.value
        if isinstance(value, Function):
            self._lift(binding, value)
        elif isinstance(binding, MatchCast):
            self._out.append(MatchCast(binding.var, self._leaf(value), binding.struct_info, binding.source))
        else:
            self._out.append(VarBinding(binding.var, self._value(value), binding.source))

    def _lift(self, binding: Binding, function: Function) -> None:
        captured = _captured(function, binding.var, self._locals)
        name = f"{self._name}.{binding.var.name}"
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        self._locals[binding.var] = name, captured
        # Parameters of the lifted function for what is captured, under the names it has inside.
        taken = {param.name for param in function.params}
        params: list[Var] = []
        renamed: dict[Var, Expr] = {}
        for item in captured:
            hint = item.name
            while hint in taken:
                hint += "_"
            taken.add(hint)
            if isinstance(item, SymVar):
                params.append(Var(hint, PrimStructInfo("int64", item)))
            else:
                param = Var(hint, item.struct_info)
                params.append(param)
                renamed[item] = param
        attrs = {key: value for key, value in function.attrs.items() if key != "output_names"}
        lifted = Function((*function.params, *params), function.body, function.ret_struct_info, attrs)
        self.functions[name] = self.function(name, lifted, renamed, self._locals)

    def _value(self, value: Expr) -> Expr:
        if isinstance(value, Call):
            args = tuple(map(self._leaf, value.args))
            op = value.op
            if isinstance(op, Var):
                local = self._locals.get(op)
                if local is not None:
                    callee = GlobalVar(local[0], self._info_of(local, op))
                    return Call(callee, (*args, *self._captures(local)), value.attrs, value.struct_info, value.source)
                renamed = self._renamed.get(op, op)
                assert isinstance(renamed, Var)
                op = renamed
            return Call(op, args, value.attrs, value.struct_info, value.source)
        if isinstance(value, Tuple):
            return Tuple(map(self._leaf, value.fields))
        if isinstance(value, TupleGetItem):
            return TupleGetItem(self._leaf(value.tuple), value.index, value.struct_info)
        if isinstance(value, If):
            cond = self._leaf(value.cond)
            return If(cond, self._sequence(value.true_branch), self._sequence(value.false_branch), value.struct_info)
        return self._leaf(value)

    def _captures(self, local: _Local) -> list[Expr]:
        return [PrimValue(item) if isinstance(item, SymVar) else self._leaf(item) for item in local[1]]

    def _leaf(self, leaf: Expr) -> Expr:
        """An operand; a local function as a value becomes a closure that is made right here."""
        if not isinstance(leaf, Var):
            return leaf
        local = self._locals.get(leaf)
        if local is None:
            return self._renamed.get(leaf, leaf)
        callee = GlobalVar(local[0], self._info_of(local, leaf))
        captures = self._captures(local)
        if not captures:
            return callee
        var = Var(leaf.name, leaf.struct_info)
        call = extern_call(MAKE_CLOSURE, (callee, *captures), leaf.struct_info)
        self._out.append(VarBinding(var, call))
        return var

    def _info_of(self, local: _Local, var: Var) -> StructInfo | None:
        info = var.struct_info
        if not isinstance(info, CallableStructInfo) or info.params is None:
            return info
        added = [PrimStructInfo("int64", item) if isinstance(item, SymVar) else item.struct_info for item in local[1]]
        return CallableStructInfo((*info.params, *added), info.ret)  # type: ignore[arg-type]


def _captured(function: Function, itself: Var, locals_: dict[Var, _Local]) -> tuple[Var | SymVar, ...]:
    """What a local function reads from outside, in order of reading; of other local functions, what they capture."""
    found: dict[Var | SymVar, None] = {}
    _Captures(found, {itself}, set(), locals_).function(function)
    # What captured values define as they are passed need not be passed again.
    defined = {s for item in found if isinstance(item, Var) for s in defined_symbols(item.struct_info)}
    mentioned = {s: None for item in found if isinstance(item, Var) for s in sorted_symbols(item.struct_info)}
    given = {s for param in function.params for s in defined_symbols(param.struct_info)}
    items: dict[Var | SymVar, None] = {i: None for i in found if isinstance(i, Var)}
    for symbol in (*(i for i in found if isinstance(i, SymVar)), *mentioned):
        if symbol not in defined and symbol not in given:
            items[symbol] = None
    return tuple(items)


def sorted_symbols(info: StructInfo | None) -> list[SymVar]:
    """The symbols of a struct info in an order that does not depend on hashing."""
    return sorted(struct_info_vars(info), key=lambda symbol: symbol.name)


class _Captures:
    """A walk that collects variables and symbols which are not defined inside."""

    def __init__(
        self, found: dict[Var | SymVar, None], inside: set[Var], symbols: set[SymVar], locals_: dict[Var, _Local]
    ) -> None:
        self._found = found
        self._inside = inside
        self._symbols = symbols
        self._locals = locals_

    def function(self, function: Function) -> None:
        for param in function.params:
            self._inside.add(param)
            self._symbols.update(defined_symbols(param.struct_info))
        for param in function.params:
            self._info(param.struct_info)
        self._sequence(function.body)
        self._info(function.ret_struct_info)

    def _sequence(self, seq: SeqExpr) -> None:
        for binding in seq.bindings():
            value = binding.value
            if isinstance(value, Function):
                self._inside.add(binding.var)
                _Captures(self._found, self._inside, set(self._symbols), self._locals).function(value)
            elif isinstance(value, If):
                self._read(value.cond)
                for branch in (value.true_branch, value.false_branch):
                    _Captures(self._found, self._inside, set(self._symbols), self._locals)._sequence(branch)
            else:
                operands = value.args if isinstance(value, Call) else (value,)
                if isinstance(value, Tuple):
                    operands = value.fields
                elif isinstance(value, TupleGetItem):
                    operands = (value.tuple,)
                elif isinstance(value, Call):
                    if isinstance(value.op, Var):
                        operands = (*operands, value.op)
                    self._attr(tuple(value.attrs.values()))
                for operand in operands:
                    self._read(operand)
            self._inside.add(binding.var)
            if isinstance(binding, MatchCast):
                self._symbols.update(defined_symbols(binding.struct_info))
                self._info(binding.struct_info)
            self._info(binding.var.struct_info)
        self._read(seq.body)

    def _read(self, leaf: Expr) -> None:
        if isinstance(leaf, ShapeExpr):
            self._attr(leaf.values)
        elif isinstance(leaf, PrimValue):
            self._attr(leaf.value)
        elif isinstance(leaf, Var) and leaf not in self._inside:
            local = self._locals.get(leaf)
            if local is None:
                self._found[leaf] = None
            for item in local[1] if local else ():
                self._found[item] = None

    def _attr(self, value: object) -> None:
        if isinstance(value, (tuple, list)):
            for item in value:
                self._attr(item)
        elif not isinstance(value, (bool, int, float, str)) and value is not None:
            try:
                symbols = sorted(free_vars(value), key=lambda symbol: symbol.name)  # type: ignore[arg-type]
            except AssertionError:
                return  # an attribute of another kind
            self._symbols_read(symbols)

    def _info(self, info: StructInfo | None) -> None:
        self._symbols_read(sorted_symbols(info))

    def _symbols_read(self, symbols: list[SymVar]) -> None:
        for symbol in symbols:
            if symbol not in self._symbols:
                self._found[symbol] = None
