"""Memory planning: which tensors share memory."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

import numpy as np

from pyvm.ir import (
    Binding,
    Call,
    DataTypeImm,
    Expr,
    Function,
    If,
    IRModule,
    Prim,
    PrimStructInfo,
    PrimValue,
    SeqExpr,
    ShapeExpr,
    ShapeStructInfo,
    StringImm,
    TensorStructInfo,
    Var,
    VarBinding,
    dtype_bytes,
)

from .lowered import (
    ALLOC_STORAGE,
    ALLOC_TENSOR,
    ALLOC_TENSOR_AT,
    ARENA,
    BORROWS,
    CONCAT,
    DESTINATIONS,
    INPLACE,
    RESHAPE,
    extern_call,
    extern_name,
)
from .rewriter import Rewriter, operands

ALIGNMENT_BYTES = 64
_MAX_GREEDY_BUFFERS = 2048

_Bases = frozenset["_Buffer"]
_NOTHING: _Bases = frozenset()


def plan_memory(module: IRModule) -> IRModule:
    """Every tensor has a storage; tensors that are alive at the same time never overlap.

    Tensors of known size that stay inside their function lie in one arena per call, at 64-byte aligned offsets; its
    size is the function attribute "arena_bytes" (and "tensor_bytes" what it would take without sharing). Tensors of
    symbolic size get storages at run time; one is used again when the size is provably equal. Tensors that leave the
    function, or reach a callee that may keep them, have a storage of their own. Where a kernel may work in place and
    its input dies, the input is passed as the output too. A concatenation of tensors that lie one after the other
    (nothing but ones before the axis) is not computed: its inputs are made where its output lies.
    """
    functions = {name: _PlanFunction(function).run() for name, function in module.functions.items()}
    return IRModule(functions, module.attrs)


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
    escapes: bool = False
    merged_into: _Buffer | None = None
    shift: int = 0  # with merged_into: bytes from its start to ours
    same_as: Var | None = None  # with merged_into: the variable that this tensor can simply be
    offset: int = -1
    storage: _Storage | None = None

    def locate(self) -> tuple[_Buffer, int]:
        """The buffer that this one is part of in the end, and the position in it."""
        buffer, shift = self, 0
        while buffer.merged_into is not None:
            shift += buffer.shift
            buffer = buffer.merged_into
        if buffer is not self:
            self.merged_into, self.shift = buffer, shift  # so that long chains are walked once
        return buffer, shift

    def root(self) -> _Buffer:
        return self.locate()[0]

    def fills(self, root: _Buffer) -> bool:
        """Whether this buffer is all of `root`, which it is part of."""
        return self.locate() == (root, 0) and self.nbytes == root.nbytes


@dataclass(eq=False)
class _Storage:
    """A storage that is allocated while the function runs."""

    var: Var
    nbytes: Prim
    in_scope: bool = True


@dataclass
class _Facts:
    """What the first walk finds out."""

    bases: dict[Var, _Bases] = field(default_factory=dict)  # a variable -> memory that its value may lie in
    buffers: dict[Var, _Buffer] = field(default_factory=dict)  # an allocated tensor -> its memory
    mergers: list[tuple[int, Call]] = field(default_factory=list)  # calls that may work in place, concatenations
    joined: set[Expr] = field(default_factory=set)  # concatenations that need no call


class _PlanFunction:
    def __init__(self, function: Function) -> None:
        self.function = function
        self.facts = _Facts()
        self.position = 0
        # Memory of others: parameters, constants, what a callee returns. It escapes, so nothing takes it over; a value
        # that may lie here or in a buffer of ours (the value of an If) has both.
        self.foreign: _Bases = frozenset((_Buffer(TensorStructInfo(), 0, 0, 0, escapes=True),))

    def run(self) -> Function:
        facts = self.facts
        self._scan(self.function.body)
        self._escape(self.function.body.body)
        for position, call in facts.mergers:
            if INPLACE in call.attrs:
                self._hand_over(position, call)
            else:
                self._join(call)
        buffers = list(facts.buffers.values())
        static = [b for b in buffers if b.merged_into is None and not b.escapes and isinstance(b.nbytes, int)]
        arena_bytes = place_buffers(static)
        tensor_bytes = sum(_aligned(b.nbytes) for b in buffers if isinstance(b.nbytes, int) and not b.root().escapes)
        planned = _EmitPlan(self.function, facts, arena_bytes).run_function()
        attrs = {**self.function.attrs, "arena_bytes": arena_bytes, "tensor_bytes": tensor_bytes}
        return Function(planned.params, planned.body, planned.ret_struct_info, attrs)

    # --- who is alive when, and what may share memory with what

    def _scan(self, seq: SeqExpr) -> None:
        for binding in seq.bindings():
            self._scan_binding(binding)

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
            buffer = _Buffer(info, position, position, tensor_bytes(info))
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
                out.merged_into = donor
                out.same_as = inputs[index]  # type: ignore[assignment]
                root.end = out.end
                root.escapes = out.escapes  # a result of the function is then made in its own storage all along
                return

    def _join(self, call: Call) -> None:
        """Puts the inputs of a concatenation where its output is, if they lie in memory as they lie in the output."""
        *inputs, axis, destination = call.args
        out = self.facts.buffers[destination]  # type: ignore[index]
        assert isinstance(axis, PrimValue) and isinstance(axis.value, int) and out.info.shape is not None
        if any(dim != 1 for dim in out.info.shape[: axis.value]):
            return
        parts: dict[_Buffer, int] = {}
        shift = 0
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
            if not isinstance(base.nbytes, int) or tensor_bytes(info) != base.nbytes or shift % ALIGNMENT_BYTES:
                return
            parts[root] = shift
            shift += base.nbytes
        if shift != out.nbytes:
            return
        for root, position in parts.items():
            root.merged_into, root.shift = out, position
            out.begin = min(out.begin, root.begin)
            out.end = max(out.end, root.end)
        self.facts.joined.add(call)


def tensor_bytes(info: TensorStructInfo) -> Prim:
    """Bytes of a tensor of known shape and dtype."""
    assert info.shape is not None and info.dtype is not None
    total: Prim = dtype_bytes(info.dtype)
    for dim in info.shape:
        total = total * dim
    return total


def _aligned(nbytes: Prim) -> int:
    """`nbytes` up to the next alignment boundary; an empty tensor takes one unit, so that it has an address."""
    assert isinstance(nbytes, int)
    return max(-(-nbytes // ALIGNMENT_BYTES), 1) * ALIGNMENT_BYTES


def place_buffers(buffers: list[_Buffer]) -> int:
    """Gives each buffer an offset so that buffers alive at the same time do not overlap; returns the size of all.

    Best fit in order of time always; for functions that are not very long, largest first too, whichever is smaller.
    """
    if not buffers:
        return 0
    begins = [b.begin for b in buffers]
    ends = [b.end for b in buffers]
    sizes = [_aligned(b.nbytes) for b in buffers]
    offsets, total = best_fit(begins, ends, sizes)
    if len(buffers) <= _MAX_GREEDY_BUFFERS:
        by_size, by_size_total = largest_first(begins, ends, sizes)
        if by_size_total < total:
            offsets, total = by_size, by_size_total
    for buffer, offset in zip(buffers, offsets, strict=True):
        buffer.offset = offset
    return total


def best_fit(begins: list[int], ends: list[int], sizes: list[int]) -> tuple[list[int], int]:
    """Offsets as an allocator would give them: at each begin the smallest free gap that fits, else the end grows."""
    offsets = [0] * len(sizes)
    by_end = sorted(range(len(sizes)), key=lambda i: ends[i])
    released = 0
    gaps: list[tuple[int, int]] = []  # (size, offset), sorted
    starts: dict[int, int] = {}  # offset -> size of a gap
    stops: dict[int, int] = {}  # end of a gap -> its offset
    total = 0

    def remove(offset: int) -> int:
        size = starts.pop(offset)
        del stops[offset + size]
        del gaps[bisect.bisect_left(gaps, (size, offset))]
        return size

    def add(offset: int, size: int) -> None:
        if offset in stops:
            before = stops[offset]
            size += remove(before)
            offset = before
        if offset + size in starts:
            size += remove(offset + size)
        starts[offset] = size
        stops[offset + size] = offset
        bisect.insort(gaps, (size, offset))

    for i in sorted(range(len(sizes)), key=lambda i: begins[i]):
        while ends[by_end[released]] < begins[i]:
            done = by_end[released]
            add(offsets[done], sizes[done])
            released += 1
        size = sizes[i]
        found = bisect.bisect_left(gaps, (size, -1))
        if found < len(gaps):
            offset = gaps[found][1]
            rest = remove(offset) - size
            if rest:
                add(offset + size, rest)
        elif total in stops:  # the last gap touches the end: grow it
            offset = stops[total]
            remove(offset)
            total = offset + size
        else:
            offset = total
            total += size
        offsets[i] = offset
    return offsets, total


def largest_first(begins: list[int], ends: list[int], sizes: list[int]) -> tuple[list[int], int]:
    """Offsets by decreasing size, each in the lowest gap between those placed before that are alive with it."""
    n = len(sizes)
    order = sorted(range(n), key=lambda i: (-sizes[i], begins[i]))
    placed_begin = np.empty(n, np.int64)
    placed_end = np.empty(n, np.int64)
    placed_offset = np.empty(n, np.int64)
    placed_stop = np.empty(n, np.int64)
    offsets = [0] * n
    total = 0
    for count, i in enumerate(order):
        alive = np.flatnonzero((placed_begin[:count] <= ends[i]) & (placed_end[:count] >= begins[i]))
        offset = 0
        if alive.size:
            starts = placed_offset[alive]
            rank = np.argsort(starts, kind="stable")
            for start, stop in zip(starts[rank].tolist(), placed_stop[alive][rank].tolist(), strict=True):
                if start - offset >= sizes[i]:
                    break
                offset = max(offset, stop)
        placed_begin[count], placed_end[count] = begins[i], ends[i]
        placed_offset[count], placed_stop[count] = offset, offset + sizes[i]
        offsets[i] = offset
        total = max(total, offset + sizes[i])
    return offsets, total


class _EmitPlan(Rewriter):
    """The second walk: writes the allocations."""

    def __init__(self, function: Function, facts: _Facts, arena_bytes: int) -> None:
        super().__init__(IRModule({"planned": function}))
        self._facts = facts
        self._arena_bytes = arena_bytes
        self._arena: Var | None = None
        self._position = 0
        self._free: dict[Prim, list[_Storage]] = {}
        self._ends: dict[int, list[_Buffer]] = {}
        self._scopes: list[list[_Storage]] = []
        for buffer in facts.buffers.values():
            if buffer.merged_into is None and not buffer.escapes and not isinstance(buffer.nbytes, int):
                self._ends.setdefault(buffer.end, []).append(buffer)

    def run_function(self) -> Function:
        """The function with every allocation written out."""
        return self.run().functions["planned"]

    def rewrite_sequence(self, seq: SeqExpr) -> SeqExpr:
        self._scopes.append([])
        result = super().rewrite_sequence(seq)
        for storage in self._scopes.pop():
            storage.in_scope = False
        return result

    def visit(self, binding: Binding) -> None:
        if self._arena is None and self._arena_bytes and len(self._scopes) == 1:
            arena_shape = ShapeExpr((self._arena_bytes,))
            self._arena = self._storage("arena", arena_shape, DataTypeImm("uint8"), {ARENA: True})
        if isinstance(binding.value, If):
            self._release(self._position)
            self._position += 1
            super().visit(binding)
            self._release(self._position)
            self._position += 1
            return
        position = self._position
        self._position += 1
        if extern_name(binding.value) == ALLOC_TENSOR:
            self._allocate(binding)
        elif binding.value not in self._facts.joined:
            super().visit(binding)
        self._release(position)

    def _release(self, position: int) -> None:
        for buffer in self._ends.get(position, ()):
            storage = buffer.storage
            if storage is not None and storage.in_scope:
                self._free.setdefault(storage.nbytes, []).append(storage)

    def _allocate(self, binding: Binding) -> None:
        value = binding.value
        assert isinstance(value, Call)
        buffer = self._facts.buffers[binding.var]
        if buffer.same_as is not None:
            self.replace(binding.var, self.leaf(buffer.same_as))
            return
        root, shift = buffer.locate()
        offset = shift
        if root.offset >= 0:
            assert self._arena is not None
            storage, offset = self._arena, root.offset + shift
        else:
            if root.storage is None:
                known = None if root.escapes else self._reuse(root.nbytes)
                root.storage = known or self._new_storage(root)
            storage = root.storage.var
        shape, dtype = value.args
        args = (storage, PrimValue(offset), shape, dtype)
        self.bind(binding, extern_call(ALLOC_TENSOR_AT, args, value.struct_info, None, binding.source))

    def _reuse(self, nbytes: Prim) -> _Storage | None:
        candidates = self._free.get(nbytes, [])
        while candidates:
            storage = candidates.pop()
            if storage.in_scope:
                return storage
        return None

    def _new_storage(self, buffer: _Buffer) -> _Storage:
        assert buffer.info.shape is not None and buffer.info.dtype is not None
        # Product of the dims times the bytes of the dtype, so the size needs no expression of its own.
        var = self._storage("storage", ShapeExpr(buffer.info.shape), DataTypeImm(buffer.info.dtype))
        storage = _Storage(var, buffer.nbytes)
        self._scopes[-1].append(storage)
        return storage

    def _storage(self, name: str, shape: Expr, dtype: Expr, attrs: dict[str, object] | None = None) -> Var:
        call = extern_call(ALLOC_STORAGE, (shape, PrimValue(0), dtype, StringImm("global")), None, attrs)
        var = Var(self.bb.unique_name(name), call.struct_info)
        self.keep(VarBinding(var, call))
        return var
