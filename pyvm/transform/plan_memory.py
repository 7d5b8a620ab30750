"""Memory planning: which tensors share memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pyvm.checked_calls import checked
from pyvm.ir import (
    Binding,
    Call,
    DataTypeImm,
    Expr,
    Function,
    If,
    IRModule,
    MatchCast,
    Poly,
    Prim,
    PrimStructInfo,
    PrimValue,
    SeqExpr,
    ShapeExpr,
    ShapeStructInfo,
    StringImm,
    SymVar,
    TensorStructInfo,
    Var,
    VarBinding,
    bounds,
    dtype_bytes,
    free_vars,
)
from pyvm.ir.nesting import typed_nesting
from pyvm.ir.rules import defined_symbols
from vmcore.arena import MAX_BUFFERS

from .lowered import (
    ALLOC_STORAGE,
    ALLOC_TENSOR,
    ALLOC_TENSOR_AT,
    ARENA,
    BORROWS,
    CONCAT,
    DESTINATIONS,
    INPLACE,
    PLAN_ARENA,
    RESHAPE,
    extern_call,
    extern_name,
    upper_bounds,
)
from .packing import ALIGNMENT_BYTES, aligned, most_alive, pack
from .rewriter import Rewriter, operands

# An arena of c * n bytes may be this much larger for having its parts aligned for every n.
_MAX_SCALED_WASTE = 1.02

_Bases = frozenset["_Buffer"]
_NOTHING: _Bases = frozenset()


@checked
@typed_nesting("plan_memory")
def plan_memory(module: IRModule) -> IRModule:
    """Every tensor has a storage; tensors that are alive at the same time never overlap.

    Tensors that stay inside their function lie in one arena per call, at 64-byte aligned offsets. Where all sizes are
    known, or have an upper bound (attribute "upper_bounds" of the module or the function), it has a fixed size. Where
    all symbolic sizes are multiples of one product (c * batch), so are offsets and the size of the arena. Otherwise the
    function plans its arena when it runs, from the sizes that it then knows. Tensors whose size depends on symbols that
    a match_cast defines, or on what only one branch may afford, have an arena of their own there.

    Tensors that leave the function, or reach a callee that may keep them, have a storage of their own. Where a kernel
    may work in place and its input dies, the input is passed as the output too. A concatenation of tensors that lie
    one after the other (nothing but ones before the axis) is not computed: its inputs are made where its output lies.

    Function attributes: "arena_bytes", of its one arena (text if symbolic); "live_bytes", the most bytes of tensors of
    known size that are ever needed at once, below which no arena can be (text if a run decides: `explain` gives both
    for any sizes); "tensor_bytes", what these tensors would take without sharing.
    """
    functions = {name: _PlanFunction(module, function).run() for name, function in module.functions.items()}
    return IRModule(functions, module.attrs)


@dataclass(eq=False)
class _Arena:
    """One allocation for many buffers."""

    size: Prim
    # Planned at run time, see pyvm.builtin.plan_arena: its arguments, and the symbols for what it returns.
    table: tuple[int, ...] = ()
    sizes: tuple[Prim, ...] = ()
    results: tuple[SymVar, ...] = ()
    var: Var | None = None


@dataclass(eq=False)
class _Site:
    """Where an arena can be allocated: the start of a sequence, or after a match_cast that gives symbols a value."""

    anchor: SeqExpr | Binding
    known: frozenset[SymVar]
    before: _Site | None  # the one before it in its sequence
    outer: _Site | None  # the last one before this sequence in the enclosing one
    certain: dict[Prim, None] = field(default_factory=dict)  # symbolic sizes that every path from here allocates
    buffers: list[_Buffer] = field(default_factory=list)
    arenas: list[_Arena] = field(default_factory=list)

    def sequence(self) -> list[_Site]:
        """The sites of its sequence up to this one."""
        sites = [self]
        while sites[-1].before is not None:
            sites.append(sites[-1].before)
        return sites[::-1]


@dataclass(eq=False)
class _Buffer:
    """The memory of one allocated tensor, or of several that hand it on in place.

    `begin` and `end` are positions of bindings in the order of the text. As branches are numbered one after the
    other, two buffers whose ranges do not meet are not alive at the same time on any path.
    """

    info: TensorStructInfo
    begin: int
    end: int
    nbytes: Prim
    limit: int | None = None  # the most bytes that it can have, where that is known
    site: _Site | None = None  # the first place of its sequence where its size is known
    escapes: bool = False
    merged_into: _Buffer | None = None
    shift: Prim = 0  # with merged_into: bytes from its start to ours
    same_as: Var | None = None  # with merged_into: the variable that this tensor can simply be
    arena: _Arena | None = None
    offset: Prim = 0
    storage: Var | None = None  # of its own, where it is in no arena

    def locate(self) -> tuple[_Buffer, Prim]:
        """The buffer that this one is part of in the end, and the position in it."""
        buffer, shift = self, self.shift
        if self.merged_into is None:
            return self, 0
        chain = []
        while buffer.merged_into is not None:
            chain.append(buffer)
            buffer = buffer.merged_into
        shift = 0
        for part in reversed(chain):  # so that long chains are walked once
            shift = part.shift + shift
            part.merged_into, part.shift = buffer, shift
        return buffer, shift

    def root(self) -> _Buffer:
        return self.locate()[0]

    def fills(self, root: _Buffer) -> bool:
        """Whether this buffer is all of `root`, which it is part of."""
        return self.locate() == (root, 0) and self.nbytes == root.nbytes


@dataclass
class _Facts:
    """What the first walk finds out."""

    bases: dict[Var, _Bases] = field(default_factory=dict)  # a variable -> memory that its value may lie in
    buffers: dict[Var, _Buffer] = field(default_factory=dict)  # an allocated tensor -> its memory
    mergers: list[tuple[int, Call]] = field(default_factory=list)  # calls that may work in place, concatenations
    joined: set[Expr] = field(default_factory=set)  # concatenations that need no call
    sites: dict[SeqExpr | Binding, _Site] = field(default_factory=dict)
    needed: dict[_Buffer, list[int]] = field(default_factory=dict)  # from and to when it holds what nothing else does


class _PlanFunction:
    def __init__(self, module: IRModule, function: Function) -> None:
        self.function = function
        self.facts = _Facts()
        self.position = 0
        self.limits = upper_bounds(module, function)
        self.site: _Site | None = None  # the last one before the current binding in its sequence
        # Memory of others: parameters, constants, what a callee returns. It escapes, so nothing takes it over; a value
        # that may lie here or in a buffer of ours (the value of an If) has both.
        self.foreign: _Bases = frozenset((_Buffer(TensorStructInfo(), 0, 0, 0, escapes=True),))

    def run(self) -> Function:
        facts = self.facts
        params = self.function.params
        self._scan(self.function.body, frozenset(s for param in params for s in defined_symbols(param.struct_info)))
        self._escape(self.function.body.body)
        facts.needed = {buffer: [buffer.begin, buffer.end] for buffer in facts.buffers.values()}
        for position, call in facts.mergers:
            if INPLACE in call.attrs:
                self._hand_over(position, call)
            else:
                self._join(position, call)
        kept = [b for b in facts.buffers.values() if not b.root().escapes]
        for buffer in kept:
            if buffer.merged_into is None:
                site = self._site_of(buffer)
                if site is not None:
                    site.buffers.append(buffer)
        prefix = "arena"
        while any(symbol.name.startswith(prefix) for site in facts.sites.values() for symbol in site.known):
            prefix += "_"
        for number, site in enumerate(facts.sites.values()):
            _place_site(site, f"{prefix}{number or ''}")
        planned = _EmitPlan(self.function, facts).run_function()
        attrs = {**self.function.attrs, **self._sizes(kept)}
        return Function(planned.params, planned.body, planned.ret_struct_info, attrs)

    def _sizes(self, kept: list[_Buffer]) -> dict[str, int | str]:
        """Function attributes about the memory of tensors that stay inside the function."""
        size: Prim = sum(arena.size for arena in self.facts.sites[self.function.body].arenas)
        planned_later = any(arena.table for site in self.facts.sites.values() for arena in site.arenas)
        begins, ends, sizes = [], [], []
        for buffer in kept:
            first, last = self.facts.needed[buffer]
            if buffer.limit is not None and first <= last:
                begins.append(first)
                ends.append(last)
                sizes.append(aligned(buffer.limit))
        text = "planned at run time" if planned_later else f"{size} bytes"
        return {
            "arena_bytes": size if isinstance(size, int) and not planned_later else text,
            "live_bytes": text if planned_later else most_alive(begins, ends, sizes),
            "tensor_bytes": sum(aligned(buffer.limit) for buffer in kept if buffer.limit is not None),
        }

    # --- who is alive when, and what may share memory with what

    def _scan(self, seq: SeqExpr, params: frozenset[SymVar] = frozenset()) -> None:
        outer = self.site
        self.site = self.facts.sites[seq] = _Site(seq, params if outer is None else outer.known, None, outer)
        for binding in seq.bindings():
            self._scan_binding(binding)
            if isinstance(binding, MatchCast):
                symbols = frozenset(defined_symbols(binding.struct_info))
                if not symbols <= self.site.known:
                    self.site = _Site(binding, self.site.known | symbols, self.site, outer)
                    self.facts.sites[binding] = self.site
        self.site = outer

    def _scan_binding(self, binding: Binding) -> None:
        facts, value = self.facts, binding.value
        if isinstance(value, If):
            self._use(value.cond)
            self.position += 1
            aliases = _NOTHING
            for branch in (value.true_branch, value.false_branch):
                self._scan(branch)
                aliases |= self._bases_of(branch.body)
            # The value is read when its branch ends, and is alive from then on.
            for buffer in aliases:
                buffer.end = self.position
            facts.bases[binding.var] = aliases
            self.position += 1
            return
        position = self.position
        self.position += 1
        for operand in operands(value):
            self._use(operand, position)
        name = extern_name(value)
        if name == ALLOC_TENSOR:
            info = binding.var.struct_info
            assert isinstance(info, TensorStructInfo)
            nbytes = tensor_bytes(info)
            buffer = _Buffer(info, position, position, nbytes, self._limit(nbytes))
            if buffer.limit is None:
                assert self.site is not None
                needs = free_vars(nbytes)
                buffer.site = next((site for site in self.site.sequence() if needs <= site.known), None)
                if buffer.site is not None:
                    buffer.site.certain[nbytes] = None
            facts.buffers[binding.var] = buffer
            facts.bases[binding.var] = frozenset((buffer,))
            return
        facts.bases[binding.var] = self._result_bases(value, position)

    def _result_bases(self, value: Expr, position: int) -> _Bases:
        """Memory that the result of a binding may lie in; marks what a callee may keep."""
        union = _NOTHING
        if isinstance(value, Call):
            if extern_name(value) == RESHAPE:
                return self._bases_of(value.args[0])
            if DESTINATIONS in value.attrs:
                if INPLACE in value.attrs or extern_name(value) == CONCAT:
                    self.facts.mergers.append((position, value))
                return _NOTHING
            for arg in value.args:
                union |= self._bases_of(arg)
            if not value.attrs.get(BORROWS):
                for buffer in union:
                    buffer.escapes = True
            if isinstance(value.struct_info, (ShapeStructInfo, PrimStructInfo)):
                return _NOTHING
            return union | self.foreign
        for operand in operands(value):
            union |= self._bases_of(operand)
        return union

    def _bases_of(self, expr: Expr) -> _Bases:
        return self.facts.bases.get(expr, self.foreign) if isinstance(expr, Var) else self.foreign

    def _use(self, expr: Expr, position: int | None = None) -> None:
        for buffer in self._bases_of(expr):
            buffer.end = self.position if position is None else position

    def _escape(self, expr: Expr) -> None:
        for buffer in self._bases_of(expr):
            buffer.escapes = True

    def _hand_over(self, position: int, call: Call) -> None:
        """Lets the first destination of a call take over the memory of an argument that dies there."""
        n_destinations: int = call.attrs[DESTINATIONS]
        inputs = call.args[: len(call.args) - n_destinations]
        out = self.facts.buffers[call.args[len(inputs)]]  # type: ignore[index]
        if out.merged_into is not None:
            return
        for index in call.attrs[INPLACE]:
            donors = self._bases_of(inputs[index])
            if len(donors) != 1:
                continue
            donor = next(iter(donors))
            root = donor.root()
            if root.escapes or root.end != position or root is out:
                continue
            if out.escapes and not donor.fills(root):
                continue  # a result would keep more memory alive than its own
            # Every argument that lies in this memory must be one that the kernel may overwrite, element for element.
            fits = all(
                i in call.attrs[INPLACE] and arg.struct_info == out.info
                for i, arg in enumerate(inputs)
                if any(base.root() is root for base in self._bases_of(arg))
            )
            if fits and donor.nbytes == out.nbytes:
                self.facts.needed[donor][1] = out.begin - 1
                out.merged_into = donor
                out.same_as = inputs[index]  # type: ignore[assignment]
                root.end = out.end
                root.escapes = out.escapes  # a result of the function is then made in its own storage all along
                return

    def _join(self, position: int, call: Call) -> None:
        """Puts the inputs of a concatenation where its output is, if they lie in memory as they lie in the output."""
        *inputs, axis, destination = call.args
        out = self.facts.buffers[destination]  # type: ignore[index]
        assert isinstance(axis, PrimValue) and isinstance(axis.value, int) and out.info.shape is not None
        if any(dim != 1 for dim in out.info.shape[: axis.value]):
            return
        parts: dict[_Buffer, Prim] = {}
        shift: Prim = 0
        for arg in inputs:
            bases = self._bases_of(arg)
            if len(bases) != 1:
                return
            base = next(iter(bases))
            root = base.root()
            if root.escapes or root is out or root in parts or not base.fills(root):
                return
            info = arg.struct_info
            assert isinstance(info, TensorStructInfo)
            if tensor_bytes(info) != base.nbytes or not _is_aligned(shift):
                return
            if not (isinstance(base.nbytes, int) and isinstance(out.nbytes, int)) and root.site is not out.site:
                return  # the place for the whole must be there when its parts are made
            parts[root] = shift
            shift = shift + base.nbytes
        if shift != out.nbytes:
            return
        for root, start in parts.items():
            root.merged_into, root.shift = out, start
            self.facts.needed[root][1] = min(self.facts.needed[root][1], position)
            out.begin = min(out.begin, root.begin)
            out.end = max(out.end, root.end)
        self.facts.needed[out][0] = position + 1
        self.facts.joined.add(call)

    # --- in which arena

    def _limit(self, nbytes: Prim) -> int | None:
        """The most that a size can be, if it is a number or all its symbols have declared upper bounds."""
        if isinstance(nbytes, int):
            return nbytes
        if all(symbol.name in self.limits for symbol in free_vars(nbytes)):
            return bounds(nbytes, self.limits)[1]
        return None

    def _site_of(self, buffer: _Buffer) -> _Site | None:
        """Where the arena of a buffer is allocated; None if its size is known only where it is needed.

        What a branch needs may be more than there is, on inputs that never take it: it goes into an arena outside only
        if it is no larger than a buffer there that every path needs.
        """
        if buffer.limit is not None:
            return self.facts.sites[self.function.body]
        found = buffer.site
        outer = None if found is None else found.outer
        needs = free_vars(buffer.nbytes)
        while outer is not None:
            for site in outer.sequence():
                if needs <= site.known and any(_is_at_most(buffer.nbytes, certain) for certain in site.certain):
                    found = site
                    break
            outer = outer.outer
        return found


def tensor_bytes(info: TensorStructInfo) -> Prim:
    """Bytes of a tensor of known shape and dtype."""
    assert info.shape is not None and info.dtype is not None
    total: Prim = dtype_bytes(info.dtype)
    for dim in info.shape:
        total = total * dim
    return total


def _is_aligned(position: Prim) -> bool:
    """Whether a position is on an alignment boundary whatever its symbols are."""
    if isinstance(position, int):
        return position % ALIGNMENT_BYTES == 0
    return isinstance(position, Poly) and all(coeff % ALIGNMENT_BYTES == 0 for coeff in position.terms.values())


def _is_at_most(a: Prim, b: Prim) -> bool:
    """Whether a <= b is certain."""
    lower = bounds(b - a)[0]
    return lower is not None and lower >= 0


def _place_site(site: _Site, prefix: str) -> None:
    """Plans the arena of a site; a buffer of symbolic size that is the only one there gets a storage of its own."""
    fixed = [buffer for buffer in site.buffers if buffer.limit is not None]
    free = [buffer for buffer in site.buffers if buffer.limit is None]
    if len(free) == 1:
        free = []
    if not fixed and not free:
        return
    unit = _common_unit(free)
    if free and unit is None:
        chosen = {*fixed, *free}
        buffers = [buffer for buffer in site.buffers if buffer in chosen]
        for first in range(0, len(buffers), MAX_BUFFERS):
            _place_later(site, buffers[first : first + MAX_BUFFERS], f"{prefix}_part{first}" if first else prefix)
        return
    arena = _Arena(0)
    site.arenas.append(arena)
    for buffers, sizes, scale in (
        (fixed, [buffer.limit or 0 for buffer in fixed], 1),
        (free, [_content(buffer.nbytes) for buffer in free], 1 if unit is None else unit),
    ):
        begins, ends = [buffer.begin for buffer in buffers], [buffer.end for buffer in buffers]
        offsets, total = pack(begins, ends, list(map(aligned, sizes)))
        for buffer, offset in zip(buffers, offsets, strict=True):
            buffer.arena, buffer.offset = arena, arena.size + offset * scale
        arena.size = arena.size + total * scale


def _content(value: Prim) -> int:
    """The largest number that divides every coefficient of an expression."""
    return math.gcd(*value.terms.values()) if isinstance(value, Poly) else 1


def _common_unit(buffers: list[_Buffer]) -> Prim | None:
    """The expression of which every size is a multiple, if alignment costs little for each value of it."""
    units = {buffer.nbytes // _content(buffer.nbytes) for buffer in buffers}
    if len(units) != 1:
        return None
    (unit,) = units
    lower = bounds(unit)[0]
    sizes = [_content(buffer.nbytes) for buffer in buffers]
    waste = sum(map(aligned, sizes)) / sum(sizes)
    return unit if lower is not None and lower >= 0 and waste <= _MAX_SCALED_WASTE else None


def _place_later(site: _Site, buffers: list[_Buffer], prefix: str) -> None:
    """Lets the function plan the arena of these buffers when it runs."""
    sizes: dict[Prim, int] = {}
    table: list[int] = []
    offsets: list[SymVar] = []
    total = SymVar(f"{prefix}_bytes")
    arena = _Arena(total)
    # The planner wants them in order of time.
    for buffer in sorted(buffers, key=lambda buffer: buffer.begin):
        nbytes = buffer.nbytes if buffer.limit is None else buffer.limit
        table += (buffer.begin, buffer.end, sizes.setdefault(nbytes, len(sizes)))
        offsets.append(SymVar(f"{prefix}_{len(offsets)}"))
        buffer.arena, buffer.offset = arena, offsets[-1]
    arena.table, arena.sizes, arena.results = tuple(table), tuple(sizes), (total, *offsets)
    site.arenas.append(arena)


class _EmitPlan(Rewriter):
    """The second walk: writes the allocations."""

    def __init__(self, function: Function, facts: _Facts) -> None:
        super().__init__(IRModule({"planned": function}))
        self._function = function
        self._facts = facts
        self._entry: list[_Arena] = []  # to be allocated before the next binding
        self._in_body = True

    def run_function(self) -> Function:
        """The function with every allocation written out."""
        return self.run().functions["planned"]

    def rewrite_sequence(self, seq: SeqExpr) -> SeqExpr:
        self._entry, in_body = self._facts.sites[seq].arenas, self._in_body
        self._in_body = seq is self._function.body
        result = super().rewrite_sequence(seq)
        self._entry, self._in_body = [], in_body
        return result

    def visit(self, binding: Binding) -> None:
        arenas, self._entry = self._entry, []
        for arena in arenas:
            self._allocate_arena(arena, lasting=self._in_body)
        if extern_name(binding.value) == ALLOC_TENSOR:
            self._allocate(binding)
        elif binding.value not in self._facts.joined:
            super().visit(binding)
        if isinstance(binding, MatchCast) and binding in self._facts.sites:
            for arena in self._facts.sites[binding].arenas:
                self._allocate_arena(arena, lasting=False)

    def _allocate_arena(self, arena: _Arena, lasting: bool) -> None:
        if arena.table:
            args = (ShapeExpr(arena.table), *(PrimValue(size) for size in arena.sizes))
            call = extern_call(PLAN_ARENA, args, ShapeStructInfo(ndim=len(arena.results)))
            plan = Var(self.bb.unique_name("plan"), call.struct_info)
            self.keep(VarBinding(plan, call))
            offsets = ShapeStructInfo(arena.results)
            self.keep(MatchCast(Var("_", offsets), plan, offsets))
        attrs: dict[str, object] = {ARENA: True} if lasting else {}
        arena.var = self._storage("arena", ShapeExpr((arena.size,)), DataTypeImm("uint8"), attrs)

    def _allocate(self, binding: Binding) -> None:
        value = binding.value
        assert isinstance(value, Call)
        buffer = self._facts.buffers[binding.var]
        if buffer.same_as is not None:
            self.replace(binding.var, self.leaf(buffer.same_as))
            return
        root, shift = buffer.locate()
        if root.arena is not None:
            storage = root.arena.var
        else:
            if root.storage is None:
                assert root.info.shape is not None and root.info.dtype is not None
                # Product of the dims times the bytes of the dtype, so the size needs no expression of its own.
                root.storage = self._storage("storage", ShapeExpr(root.info.shape), DataTypeImm(root.info.dtype))
            storage = root.storage
        assert storage is not None
        shape, dtype = value.args
        args = (storage, PrimValue(root.offset + shift), shape, dtype)
        self.bind(binding, extern_call(ALLOC_TENSOR_AT, args, value.struct_info, None, binding.source))

    def _storage(self, name: str, shape: Expr, dtype: Expr, attrs: dict[str, object] | None = None) -> Var:
        call = extern_call(ALLOC_STORAGE, (shape, PrimValue(0), dtype, StringImm("global")), None, attrs)
        var = Var(self.bb.unique_name(name), call.struct_info)
        self.keep(VarBinding(var, call))
        return var
