"""What passes share: a walk that rebuilds functions binding by binding, operand access, use counts.

A pass never changes its input. Functions, blocks and bindings that a pass leaves alone are shared with the result.
"""

from __future__ import annotations

from collections.abc import Iterator

from pyvm.ir import (
    Binding,
    BindingBlock,
    BlockBuilder,
    Call,
    DataflowBlock,
    Expr,
    Function,
    If,
    IRModule,
    MatchCast,
    SeqExpr,
    Tuple,
    TupleGetItem,
    Var,
    VarBinding,
)
from vmcore.errors import LoweringError


def operands(value: Expr) -> tuple[Expr, ...]:
    """The operands of a bound value: arguments, fields, condition; the value itself if it is a leaf."""
    if isinstance(value, Call):
        return (*value.args, value.op) if isinstance(value.op, Var) else value.args
    if isinstance(value, Tuple):
        return value.fields
    if isinstance(value, TupleGetItem):
        return (value.tuple,)
    if isinstance(value, If):
        return (value.cond,)
    if isinstance(value, Function):
        raise LoweringError("a local function is left; the pass lambda_lift comes before all others")
    return (value,)


def sequences(value: Expr) -> tuple[SeqExpr, ...]:
    """The branches of a bound value."""
    return (value.true_branch, value.false_branch) if isinstance(value, If) else ()


def all_bindings(seq: SeqExpr) -> Iterator[Binding]:
    """All bindings in order of the text, those inside branches included (before the binding of their If)."""
    for binding in seq.bindings():
        for branch in sequences(binding.value):
            yield from all_bindings(branch)
        yield binding


def count_uses(function: Function) -> dict[Var, int]:
    """How often each variable is an operand or the value of a sequence."""
    counts: dict[Var, int] = {}

    def add(expr: Expr) -> None:
        if isinstance(expr, Var):
            counts[expr] = counts.get(expr, 0) + 1

    add(function.body.body)
    for binding in all_bindings(function.body):
        for operand in operands(binding.value):
            add(operand)
        for branch in sequences(binding.value):
            add(branch.body)
    return counts


class Rewriter:
    """Rebuilds every function of a module; subclasses override `visit`.

    `replace(var, leaf)` makes later operands read `leaf` instead of `var`. `self.bb` receives the new bindings.
    """

    def __init__(self, module: IRModule) -> None:
        self.module = module
        self.bb = BlockBuilder()
        self._replaced: dict[Var, Expr] = {}
        self._block: BindingBlock | None = None

    def run(self) -> IRModule:
        """The rewritten module."""
        functions = {}
        for name, function in self.module.functions.items():
            functions[name] = self.rewrite_function(name, function)
        return IRModule(functions, self.module.attrs)

    def rewrite_function(self, name: str, function: Function) -> Function:
        """The rewritten function; the same object if nothing changed."""
        self.bb = BlockBuilder()
        self.bb.reserve_names(param.name for param in function.params)
        self.bb.reserve_names(binding.var.name for binding in all_bindings(function.body))
        self._replaced = {}
        body = self.rewrite_sequence(function.body)
        return function if body is function.body else function.with_body(body)

    def rewrite_sequence(self, seq: SeqExpr) -> SeqExpr:
        """The rewritten sequence; the same object if nothing changed."""
        self.bb.open_scope()
        for block in seq.blocks:
            self.rewrite_block(block)
        new = self.bb.close_scope(self.leaf(seq.body))
        unchanged = new.body is seq.body and len(new.blocks) == len(seq.blocks)
        for ours, theirs in zip(new.blocks, seq.blocks, strict=False):
            unchanged = unchanged and type(ours) is type(theirs) and len(ours.bindings) == len(theirs.bindings)
            unchanged = unchanged and all(a is b for a, b in zip(ours.bindings, theirs.bindings, strict=True))
        return seq if unchanged else new

    def rewrite_block(self, block: BindingBlock) -> None:
        """Visits the bindings of a block; what they become goes into a block of the same kind."""
        outer, self._block = self._block, block
        if isinstance(block, DataflowBlock) and self.keeps_dataflow():
            with self.bb.dataflow():
                self._visit_all(block)
        else:
            self._visit_all(block)
        self._block = outer

    def _visit_all(self, block: BindingBlock) -> None:
        outside = self.bb.current_source
        for binding in block.bindings:
            self.bb.current_source = binding.source
            self.visit(binding)
        self.bb.current_source = outside

    def keeps_dataflow(self) -> bool:
        """Whether dataflow blocks stay dataflow blocks."""
        return True

    def visit(self, binding: Binding) -> None:
        """Handles one binding of the old function. The default keeps it, with operands replaced."""
        self.keep(self.remap(binding))

    def keep(self, binding: Binding) -> None:
        """Appends a binding as it is."""
        self.bb.emit_binding(binding)

    def replace(self, var: Var, value: Expr) -> None:
        """Later uses of `var` become `value`, a leaf that is visible wherever `var` is."""
        self._replaced[var] = value

    def bind(self, binding: Binding, value: Expr) -> None:
        """Appends `var = value` for the variable of an old binding; the operands of `value` are new ones."""
        self.keep(VarBinding(binding.var, value, binding.source))

    def leaf(self, expr: Expr) -> Expr:
        """A leaf after replacement."""
        return self._replaced.get(expr, expr) if isinstance(expr, Var) else expr

    def remap(self, binding: Binding) -> Binding:
        """The binding with operands replaced and branches rewritten; the same object if nothing changed."""
        value = self.remap_value(binding.value)
        if value is binding.value:
            return binding
        if isinstance(binding, MatchCast):
            return MatchCast(binding.var, value, binding.struct_info, binding.source)
        return VarBinding(binding.var, value, binding.source)

    def remap_value(self, value: Expr) -> Expr:
        """A bound value with operands replaced and branches rewritten."""
        replaced = self._replaced
        if isinstance(value, Call):
            # Most operands are not replaced: look before building anything.
            op = replaced.get(value.op, value.op) if isinstance(value.op, Var) else value.op
            if op is value.op and not any(map(replaced.__contains__, value.args)):
                return value
            return Call(op, map(self.leaf, value.args), value.attrs, value.struct_info, value.source)  # type: ignore[arg-type]
        if isinstance(value, Tuple):
            return Tuple(map(self.leaf, value.fields)) if any(map(replaced.__contains__, value.fields)) else value
        if isinstance(value, TupleGetItem):
            base = self.leaf(value.tuple)
            return value if base is value.tuple else TupleGetItem(base, value.index, value.struct_info)
        if isinstance(value, If):
            cond = self.leaf(value.cond)
            branches = self.rewrite_sequence(value.true_branch), self.rewrite_sequence(value.false_branch)
            if cond is value.cond and branches[0] is value.true_branch and branches[1] is value.false_branch:
                return value
            return If(cond, branches[0], branches[1], value.struct_info)
        return self.leaf(value)
