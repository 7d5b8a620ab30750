"""Fusion of elementwise operators."""

from __future__ import annotations

import heapq

import numpy as np

from pyvm.checked_calls import checked
from pyvm.ir import (
    Binding,
    BindingBlock,
    Call,
    Constant,
    Expr,
    ExternFunc,
    Function,
    GlobalVar,
    IRModule,
    TensorStructInfo,
    Var,
    VarBinding,
)
from pyvm.ir.nesting import typed_nesting
from pyvm.ir.source import Source, notes_of
from pyvm.op.common import same_shape
from pyvm.op.fused import Operand, Step, encode, format_program, fused_elementwise, is_scalar, is_supported
from pyvm.op.registry import Op

from .rewriter import Rewriter, count_uses, operands

_MAX_STEPS = 32
_MAX_INPUTS = 12
# A fused chain of that many operators always pays, and a shorter one if it keeps as many elements between its operators
# out of memory. On 16 to 4096 elements, 4 operators take 0.45 to 0.95 of their time apart and 8 take 0.3 to 0.85; 2
# take 0.75 to 1.2, and less than 1 from 1024 elements on (Zen 4, 2026-11).
ALWAYS_FUSED = 4
LEAST_SAVED = 1024


@checked
@typed_nesting("fuse_elementwise")
def fuse_elementwise(module: IRModule) -> IRModule:
    """No elementwise operator reads what only it reads and another elementwise operator of this shape made, if it pays.

    Such operators are one `fused_elementwise`, which keeps what lies between them in cache. What is read elsewhere too
    stays a value of its own; so does what is broadcast to a larger shape, which would be computed more often.
    """
    return _FuseElementwise(module).run()


class _FuseElementwise(Rewriter):
    def rewrite_function(self, name: str, function: Function) -> Function:
        self._uses = count_uses(function)
        self._groups: Groups = {}
        self._inner: set[Var] = set()
        return super().rewrite_function(name, function)

    def rewrite_block(self, block: BindingBlock) -> None:
        outer = self._groups, self._inner
        self._groups, self._inner = _groups_of(block, self._uses)
        super().rewrite_block(block)
        self._groups, self._inner = outer

    def visit(self, binding: Binding) -> None:
        if binding.var in self._inner:
            return
        group = self._groups.get(binding.var)
        if group is None:
            self.keep(self.remap(binding))
            return
        steps, args = _program(group)
        fused = fused_elementwise(format_program(steps), *map(self.leaf, args))
        source = _source(group)
        call = Call(fused.op, fused.args, fused.attrs, binding.value.struct_info, source)
        self.keep(VarBinding(binding.var, call, source or binding.source))


Groups = dict[Var, list[Binding]]


def _source(group: list[Binding]) -> str | None:
    """Where the operators of a group come from: each name once, all notes, and one more that says what was done."""
    sources = [member.value.source for member in group if isinstance(member.value, Call) and member.value.source]
    if not sources:
        return None
    names = " -> ".join(member.value.op.name for member in group)  # type: ignore[attr-defined]
    how = "in one pass over memory, as nothing else reads what lies between"
    note = f"{len(group)} elementwise operators {how}: {names}"
    notes = dict.fromkeys((*(text for source in sources for text in notes_of(source)), note))
    return Source(" + ".join(dict.fromkeys(map(str, sources))), tuple(notes))


def _groups_of(block: BindingBlock, uses: dict[Var, int]) -> tuple[Groups, set[Var]]:
    """Bindings to fuse, in order, by the variable of the last one; and the variables of all but the last ones."""
    bindings = block.bindings
    position = {binding.var: number for number, binding in enumerate(bindings)}
    fusable = [isinstance(binding, VarBinding) and _is_elementwise(binding.value) for binding in bindings]
    others = [0]  # how many bindings before each one cannot be fused
    for flag in fusable:
        others.append(others[-1] + (not flag))
    taken = [False] * len(bindings)
    groups: Groups = {}
    inner: set[Var] = set()
    for root in range(len(bindings) - 1, -1, -1):
        if taken[root] or not fusable[root]:
            continue
        members = _grow(bindings, root, position, fusable, taken, others, uses)
        while len(members) > 1 and not _fits(members, bindings[root]):
            members = members[1:]  # what a member made before becomes an argument
        if len(members) > 1 and _pays(members, bindings[root]):
            for member in members:
                taken[position[member.var]] = True
            groups[bindings[root].var] = members
            inner.update(member.var for member in members[:-1])
    return groups, inner


def _grow(
    bindings: tuple[Binding, ...],
    root: int,
    position: dict[Var, int],
    fusable: list[bool],
    taken: list[bool],
    others: list[int],
    uses: dict[Var, int],
) -> list[Binding]:
    """The binding at `root` and those before it that only they read, nearest first, then in order.

    Candidates are looked at from the last to the first, so all readers of one have been seen before it.
    """
    shape = bindings[root].var.struct_info.shape  # type: ignore[union-attr]
    reads: dict[Var, int] = {}
    first_reader: dict[Var, int] = {}
    members = [bindings[root]]
    candidates: list[int] = []
    at = root
    while True:
        for operand in operands(bindings[at].value):
            if isinstance(operand, Var):
                if operand not in reads and operand in position:
                    heapq.heappush(candidates, -position[operand])
                reads[operand] = reads.get(operand, 0) + 1
                first_reader[operand] = at
        while candidates:
            at = -heapq.heappop(candidates)
            binding = bindings[at]
            info = binding.var.struct_info
            if not fusable[at] or taken[at] or reads[binding.var] != uses.get(binding.var):
                continue
            if not (same_shape(info.shape, shape) or is_scalar(info)):  # type: ignore[union-attr]
                continue
            if _keeps_more_alive(binding) and others[first_reader[binding.var]] != others[at]:
                continue
            break
        else:
            break
        if len(members) == _MAX_STEPS:
            break
        members.append(binding)
    members.reverse()
    return members


def _keeps_more_alive(binding: Binding) -> bool:
    """Whether moving the operator down to its reader may need more memory in between: it has several inputs."""
    tensors = {arg for arg in operands(binding.value) if isinstance(arg, Var) and not is_scalar(arg.struct_info)}
    return len(tensors) > 1


def _is_elementwise(value: Expr) -> bool:
    if not isinstance(value, Call) or isinstance(value.op, (ExternFunc, GlobalVar, Var)):
        return False
    if not isinstance(value.op, Op) or not is_supported(value) or not any(isinstance(arg, Var) for arg in value.args):
        return False
    if value.op.name == "pow":  # its loop knows some exponents if there is only one: that must not change
        exponent, result = value.args[1].struct_info, value.struct_info
        assert isinstance(exponent, TensorStructInfo) and isinstance(result, TensorStructInfo)
        return is_scalar(exponent) or same_shape(exponent.shape, result.shape)
    return True


def _pays(members: list[Binding], root: Binding) -> bool:
    """Whether what is saved outweighs setting the program up at each call; a symbolic size may."""
    if len(members) >= ALWAYS_FUSED:
        return True
    info = root.value.struct_info
    assert isinstance(info, TensorStructInfo)
    numel = 1
    for dim in info.shape or ():
        if not isinstance(dim, int):
            return True
        numel *= dim
    return numel * (len(members) - 1) >= LEAST_SAVED


def _fits(members: list[Binding], root: Binding) -> bool:
    """Whether the kernel can run the chain, and the result is what it was."""
    steps, args = _program(members)
    if not args or len(args) > _MAX_INPUTS or encode(steps, args) is None:
        return False
    return fused_elementwise(format_program(steps), *args).struct_info == root.value.struct_info


def _program(members: list[Binding]) -> tuple[list[Step], list[Expr]]:
    """The steps of a group and the arguments they read."""
    names: dict[object, Operand] = {}
    args: list[Expr] = []
    steps: list[Step] = []
    for number, member in enumerate(members):
        call = member.value
        assert isinstance(call, Call)
        read = []
        for arg in call.args:
            operand = names.get(arg if isinstance(arg, Var) else id(arg))
            if operand is None and isinstance(arg, Constant):
                operand = _number(arg.data)
            if operand is None:
                operand = names[arg if isinstance(arg, Var) else id(arg)] = f"x{len(args)}"
                args.append(arg)
            read.append(operand)
        attrs = tuple(call.attrs.items())
        typed = read[call.op.name == "where" :]
        if not any(isinstance(operand, str) for operand in typed):
            attrs = (*attrs, ("of", call.args[-1].struct_info.dtype))  # type: ignore[union-attr]
        steps.append(Step(call.op.name, tuple(read), attrs))
        names[member.var] = f"t{number}"
    return steps, args


def _number(array: np.ndarray) -> Operand | None:
    """A constant of one element as a number that the text of a program gives back exactly; else None."""
    if array.size != 1:
        return None
    value = array.reshape(()).item()
    if array.dtype == np.float32:
        value = float(str(array.reshape(())[()]))
    if isinstance(value, float) and (value != value or np.asarray(value, array.dtype).tobytes() != array.tobytes()):
        return None
    return value
