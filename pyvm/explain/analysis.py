"""What every instruction works on, found by following the bytecode without running it.

The walk knows what the builtins do (allocation, shapes, checks, tuples, closures), so it finds the shape of every
tensor, with symbols where only a run decides, for programs of any compiler. What it cannot know is unknown, never
wrong: where paths meet, only what both agree on is kept. The program need not be one that the verifier accepts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from pyvm.executable import (
    PACKED_FUNC,
    VM_FUNC,
    FunctionInfo,
    ScalarSpec,
    ShapeSpec,
    Spec,
    TensorSpec,
    TupleSpec,
    VMExecutable,
)
from pyvm.ir.prim import Prim, SymVar
from vmcore.isa import VM_REGISTER, VOID_REGISTER, ArgKind, Opcode, instruction_words, unpack_arg
from vmcore.types import DataType, Shape, tensor_dtype

from . import sizes
from .costs import n_outputs
from .sizes import Dims, Size, symbol
from .values import (
    NONE,
    UNKNOWN,
    Arg,
    FunctionValue,
    HeapValue,
    ScalarValue,
    ShapeValue,
    StorageValue,
    TensorValue,
    TextValue,
    TupleValue,
    Value,
    element_bytes,
    join,
    made_of,
    traced,
    tuple_of,
    without_memory,
)

_CALL, _RET, _GOTO, _IF = (int(op) for op in (Opcode.OP_CALL, Opcode.OP_RET, Opcode.OP_GOTO, Opcode.OP_IF))
_REGISTER, _IMMEDIATE, _CONSTANT, _FUNCTION = (
    int(kind) for kind in (ArgKind.ARG_REGISTER, ArgKind.ARG_IMMEDIATE, ArgKind.ARG_CONSTANT, ArgKind.ARG_FUNCTION)
)
_MAX_STATE_CELLS = 4_000_000  # registers times blocks, beyond which blocks are looked at one by one
_EXACT_AFTER = 4  # visits of a block after which what differs is unknown altogether
_MAX_RANK = 64
_MAX_DIMS = 32_768  # of a shape that is no tensor's
_MAX_CALL_DEPTH = 40


@dataclass(slots=True)
class Step:
    """One instruction as the walk saw it, on all paths that lead here."""

    pc: int
    opcode: str  # "call", "ret", "goto", "if", "malformed"
    callee: int = -1
    dst: int | None = None
    target: int | None = None  # where a jump goes
    args: list[Arg] = field(default_factory=list)
    result: Value = UNKNOWN
    reached: bool = True
    released: tuple[int, ...] = ()  # storages that no register holds any more afterwards
    writers: tuple[frozenset[int], ...] = ()  # per operand, the instructions that computed what it holds


@dataclass
class FunctionFacts:
    """One bytecode function.

    Attributes
    ----------
    steps : list of Step
        In order of the text.
    allocations : dict
        Instruction -> the tensor that it allocates: (storages, byte offset, its value).
    storages : dict
        Instruction -> bytes of the storage that it allocates.
    held_until : dict
        Storage -> last instruction after which some register still holds it.
    plans : dict
        Instruction that plans an arena when the function runs -> its table and the sizes of the buffers.
    result : Value
        Without memory.
    """

    info: FunctionInfo
    steps: list[Step] = field(default_factory=list)
    params: list[Value] = field(default_factory=list)
    allocations: dict[int, tuple[frozenset[int], Size, TensorValue]] = field(default_factory=dict)
    storages: dict[int, Size] = field(default_factory=dict)
    held_until: dict[int, int] = field(default_factory=dict)
    plans: dict[int, tuple[tuple[int, ...], list[Size]]] = field(default_factory=dict)
    result: Value = UNKNOWN
    approximate: bool = False


class Program:
    """The facts about all functions of an executable."""

    def __init__(self, executable: VMExecutable) -> None:
        self.executable = executable
        self.n_instructions = len(executable.instr_offset)
        self._offsets = executable.instr_offset.tolist()
        self._words = executable.instr_data.tolist()
        self._sizes = [instruction_words(executable.instr_data, at) for at in self._offsets]
        self._functions: dict[int, FunctionFacts | None] = {}  # None: being looked at
        self._by_name = {info.name: i for i, info in enumerate(executable.functions)}
        self._constants: dict[int, Value] = {}
        self._depth = 0

    def words(self, pc: int) -> list[int]:
        """The words of an instruction; empty for what is none."""
        at = self._offsets[pc]
        return self._words[at : at + self._sizes[pc]]

    def facts(self, index: int) -> FunctionFacts:
        """The facts about the bytecode function `index`."""
        facts = self._functions.get(index)
        if facts is None:
            self._functions[index] = None
            self._depth += 1
            try:
                facts = _FunctionWalk(self, self.executable.functions[index]).run()
            finally:
                self._depth -= 1
            self._functions[index] = facts
        return facts

    def result_of_call(self, name: str, args: list[Value]) -> Value:
        """What a function of the executable returns for these arguments, as far as that is known."""
        index = self._by_name.get(name)
        if index is None or self.executable.functions[index].kind != VM_FUNC:
            return UNKNOWN
        if (index in self._functions and self._functions[index] is None) or self._depth > _MAX_CALL_DEPTH:
            # Recursion, not known yet: what the signature says.
            signature = self.executable.signatures.get(name)
            if signature is None or len(signature.results) != 1:
                return UNKNOWN
            params, result = [value_of_spec(spec) for spec in signature.params], value_of_spec(signature.results[0])
        else:
            facts = self.facts(index)
            params, result = facts.params, facts.result
        mapping: dict[SymVar, Prim] = {}
        for param, arg in zip(params, args, strict=False):
            _unify(param, arg, mapping)
        return _substituted(result, mapping)

    def constant(self, index: int) -> Value:
        """The value of a constant."""
        known = self._constants.get(index)
        if known is None:
            known = self._constants[index] = self._constant(index)
        return known

    def _constant(self, index: int) -> Value:
        pool = self.executable.constants
        if not 0 <= index < len(pool):
            return UNKNOWN
        value = pool[index]
        if isinstance(value, np.ndarray):
            try:
                dtype = str(tensor_dtype(value))
            except (TypeError, ValueError):
                dtype = str(value.dtype)
            return TensorValue(shape=tuple(map(int, value.shape)), dtype=dtype, constant=index)
        if isinstance(value, Shape):
            return ShapeValue(dims=tuple(map(int, value)))
        if isinstance(value, DataType):
            return TextValue(text=str(value), is_dtype=True)
        if isinstance(value, str):
            return TextValue(text=value)
        return ScalarValue(number=value if isinstance(value, float) else int(value))

    def function_name(self, index: int) -> str | None:
        """The name of a function of the table."""
        functions = self.executable.functions
        return functions[index].name if 0 <= index < len(functions) else None


def _unify(param: Value, arg: Value, mapping: dict[SymVar, Prim]) -> None:
    pairs: list[tuple[Size, Size]] = []
    if isinstance(param, TensorValue) and isinstance(arg, TensorValue) and param.shape and arg.shape:
        pairs = list(zip(param.shape, arg.shape, strict=False))
    elif isinstance(param, ShapeValue) and isinstance(arg, ShapeValue) and param.dims and arg.dims:
        pairs = list(zip(param.dims, arg.dims, strict=False))
    elif isinstance(param, ScalarValue) and isinstance(arg, ScalarValue) and not isinstance(arg.number, float):
        pairs = [(param.number, arg.number)]
    elif isinstance(param, TupleValue) and isinstance(arg, TupleValue):
        for x, y in zip(param.fields, arg.fields, strict=False):
            _unify(x, y, mapping)
    for mine, theirs in pairs:
        if isinstance(mine, SymVar) and theirs is not None:
            mapping.setdefault(mine, theirs)


def _substituted(value: Value, mapping: dict[SymVar, Prim]) -> Value:
    """A result in the terms of the caller: symbols that its arguments do not fix are not known there."""

    def dim(size: Size) -> Size:
        names = sizes.symbols(size)
        if not names:
            return size
        if not names <= {var.name for var in mapping}:
            return None
        return sizes.replace(size, mapping)

    if isinstance(value, TensorValue):
        return value if value.shape is None else replace(value, shape=tuple(map(dim, value.shape)))
    if isinstance(value, ShapeValue):
        return value if value.dims is None else replace(value, dims=tuple(map(dim, value.dims)))
    if isinstance(value, ScalarValue):
        return value if isinstance(value.number, float) else ScalarValue(number=dim(value.number))
    if isinstance(value, TupleValue):
        return TupleValue(fields=tuple(_substituted(inner, mapping) for inner in value.fields))
    return value


def value_of_spec(spec: Spec) -> Value:
    """What a signature says about a parameter."""
    if isinstance(spec, TensorSpec):
        return TensorValue(shape=None if spec.shape is None else tuple(map(sizes.parse, spec.shape)), dtype=spec.dtype)
    if isinstance(spec, ShapeSpec):
        return ShapeValue(dims=None if spec.values is None else tuple(map(sizes.parse, spec.values)))
    if isinstance(spec, ScalarSpec):
        return ScalarValue()
    if isinstance(spec, TupleSpec):
        return tuple_of(tuple(map(value_of_spec, spec.fields)))
    return UNKNOWN


class _State:
    """Registers and cells of shape heaps at one point of a function."""

    __slots__ = ("registers", "heap", "writers")

    def __init__(
        self, registers: dict[int, Value], heap: dict[tuple[int, int], Prim], writers: dict[int, frozenset[int]]
    ) -> None:
        self.registers = registers
        self.heap = heap
        self.writers = writers  # buffer -> instructions that may have written what is in it

    def copy(self) -> _State:
        return _State(dict(self.registers), dict(self.heap), dict(self.writers))

    def merge(self, other: _State, exact: bool) -> bool:
        """Keeps what both know; whether anything changed."""
        changed = False
        for register, mine in list(self.registers.items()):
            theirs = other.registers.get(register)
            if theirs is None:
                # Written on one path only: nothing after reads it, as the verifier sees to.
                del self.registers[register]
                changed = True
                continue
            if mine is not theirs and mine != theirs:
                joined = join(mine, theirs, exact)
                if joined != mine:
                    self.registers[register] = joined
                    changed = True
        for cell, value in list(self.heap.items()):
            if other.heap.get(cell) != value:
                del self.heap[cell]
                changed = True
        for buffer, theirs_too in other.writers.items():
            mine_too = self.writers.get(buffer, frozenset())
            if not theirs_too <= mine_too:
                self.writers[buffer] = mine_too | theirs_too
                changed = True
        return changed


def names_of_plan(pc: int, n: int) -> list[str]:
    """Symbols for what an instruction that plans an arena returns: the size of the arena, an offset per buffer."""
    return [f"arena_at_{pc}", *(f"arena_at_{pc}_{i}" for i in range(n))]


_ANNOTATION = re.compile(r"annotation=(?:R\.)?(?:Tensor|Shape)\(\(([^()]*)\)")
_PARAM = re.compile(r"param=([^,]*), annotation")


def _names_of_dims(context: Value, n: int) -> list[str] | None:
    """The names that an error context gives to dimensions: compilers write the annotation of the parameter there."""
    if not isinstance(context, TextValue):
        return None
    found = _ANNOTATION.search(context.text[:4096])
    if found is None:
        return None
    names = [part.strip() for part in found[1].split(",")]
    if names and not names[-1]:
        names.pop()
    return names if len(names) == n else None


class _FunctionWalk:
    def __init__(self, program: Program, info: FunctionInfo) -> None:
        self.program = program
        self.info = info
        limit = program.n_instructions
        self.begin = min(max(info.start_instr, 0), limit)
        self.end = min(max(info.end_instr, self.begin), limit)
        self.facts = FunctionFacts(info)
        self.recording = False

    def run(self) -> FunctionFacts:
        facts = self.facts
        seeds = [value_of_spec(spec) for spec in self._specs()]
        seeds = [replace(seed, origins=frozenset((-1 - i,))) for i, seed in enumerate(seeds)]
        facts.params = list(seeds)
        start = _State(dict(enumerate(seeds)), {}, {})
        blocks = self._blocks()
        written = len({step[1] for step in map(self.program.words, range(self.begin, self.end)) if step[:1] == [_CALL]})
        if len(blocks) * (written + len(seeds)) > _MAX_STATE_CELLS:
            facts.approximate = True
            states: dict[int, _State] = {self.begin: start}
        else:
            states = self._fixpoint(start, blocks)
        self._record(states, blocks)
        return facts

    def _specs(self) -> list[Spec]:
        n = max(self.info.num_args, 0)
        signature = self.program.executable.signatures.get(self.info.name)
        specs = list(signature.params[:n]) if signature is not None else []
        names = self.info.param_names or [f"arg{i}" for i in range(min(n, 65536))]
        from pyvm.executable import ObjectSpec

        return specs + [ObjectSpec(name) for name in names[len(specs) : n]]

    # ---- control flow

    def _blocks(self) -> list[tuple[int, int, list[int]]]:
        """(first, last, successors) of every basic block, in order of the text."""
        leaders = {self.begin}
        targets: dict[int, list[int]] = {}
        ends: set[int] = set()
        for pc in range(self.begin, self.end):
            words = self.program.words(pc)
            if not words:
                ends.add(pc)
            elif words[0] != _CALL:
                ends.add(pc)
                if words[0] == _GOTO:
                    targets[pc] = [pc + words[1]]
                elif words[0] == _IF:
                    targets[pc] = [pc + 1, pc + words[2]]
            if pc in ends:
                leaders.add(pc + 1)
                leaders.update(targets.get(pc, ()))
        starts = sorted(pc for pc in leaders if self.begin <= pc < self.end)
        blocks = []
        for i, first in enumerate(starts):
            stop = starts[i + 1] if i + 1 < len(starts) else self.end
            last = stop - 1
            after = targets.get(last, []) if last in ends else [stop]
            blocks.append((first, last, [pc for pc in after if self.begin <= pc < self.end]))
        return blocks

    def _fixpoint(self, start: _State, blocks: list[tuple[int, int, list[int]]]) -> dict[int, _State]:
        """The state before every block that can be reached."""
        import heapq

        states = {self.begin: start.copy()}
        by_start = {first: (last, after) for first, last, after in blocks}
        visits: dict[int, int] = {}
        waiting = [self.begin] if self.begin in by_start else []
        queued = set(waiting)
        budget = 24 * (self.end - self.begin) + 10_000
        while waiting:
            first = heapq.heappop(waiting)
            queued.discard(first)
            last, successors = by_start[first]
            budget -= last - first + 1
            if budget < 0:
                self.facts.approximate = True
                return {self.begin: start}
            visits[first] = visits.get(first, 0) + 1
            state = states[first].copy()
            for pc in range(first, last + 1):
                self._step(pc, state)
            for target in successors:
                known = states.get(target)
                if known is None:
                    states[target] = state.copy()
                elif not known.merge(state, visits.get(target, 0) >= _EXACT_AFTER):
                    continue
                if target not in queued:
                    queued.add(target)
                    heapq.heappush(waiting, target)
        return states

    def _record(self, states: dict[int, _State], blocks: list[tuple[int, int, list[int]]]) -> None:
        """The last pass over the text, which notes what every instruction works on."""
        self.recording = True
        facts = self.facts
        results: list[Value] = []
        for first, last, _ in blocks:
            known = states.get(first)
            reached = known is not None or facts.approximate
            state = known.copy() if known is not None else _State({}, {}, {})
            holders: dict[int, int] = {}  # storage -> registers that hold it
            for value in state.registers.values():
                for storage in value.storages:
                    holders[storage] = holders.get(storage, 0) + 1
            for pc in range(first, last + 1):
                words = self.program.words(pc)
                dst = words[1] if words[:1] == [_CALL] and words[1] < VOID_REGISTER else None
                before = state.registers.get(dst, UNKNOWN) if dst is not None else UNKNOWN
                step = self._step(pc, state)
                step.reached = reached
                facts.steps.append(step)
                if step.opcode == "ret" and step.args:
                    results.append(step.args[0].value)
                if dst is None:
                    continue
                after = state.registers.get(dst, UNKNOWN)
                for storage in after.storages:
                    holders[storage] = holders.get(storage, 0) + 1
                released = []
                for storage in before.storages:
                    holders[storage] = holders.get(storage, 1) - 1
                    if holders[storage] <= 0:
                        del holders[storage]
                        released.append(storage)
                        facts.held_until[storage] = max(facts.held_until.get(storage, pc), pc)
                step.released = tuple(sorted(released))
            for storage in holders:
                facts.held_until[storage] = max(facts.held_until.get(storage, last), last)
        result = results[0] if results else UNKNOWN
        for other in results[1:]:
            result = join(result, other)
        facts.result = without_memory(result)

    # ---- one instruction

    def _step(self, pc: int, state: _State) -> Step:
        words = self.program.words(pc)
        if not words:
            return Step(pc, "malformed")
        op = words[0]
        if op == _CALL:
            return self._call(pc, words, state)
        if op == _RET:
            returned = self._register(words[1], state)
            return Step(pc, "ret", args=[returned], writers=(self._writers_of(returned.value, state),))
        if op == _GOTO:
            return Step(pc, "goto", target=pc + words[1])
        return Step(pc, "if", target=pc + words[2], args=[self._register(words[1], state)])

    def _register(self, register: int, state: _State) -> Arg:
        if register == VOID_REGISTER:
            return Arg("none", register, NONE)
        if register == VM_REGISTER:
            return Arg("vm", register, UNKNOWN)
        return Arg("register", register, state.registers.get(register, UNKNOWN))

    def _arg(self, word: int, state: _State) -> Arg:
        kind, value = unpack_arg(word)
        if kind == _REGISTER:
            return self._register(value, state)
        if kind == _IMMEDIATE:
            return Arg("immediate", value, ScalarValue(number=value))
        if kind == _CONSTANT:
            return Arg("constant", value, self.program.constant(value))
        if kind == _FUNCTION:
            name = self.program.function_name(value)
            return Arg("function", value, UNKNOWN if name is None else FunctionValue(name=name))
        return Arg("word", word, UNKNOWN)

    def _call(self, pc: int, words: list[int], state: _State) -> Step:
        args = [self._arg(word, state) for word in words[4:]]
        dst = words[1] if 0 <= words[1] < VOID_REGISTER else None
        name = self.program.function_name(words[2])
        rule = _RULES.get(name) if name is not None else None
        values = [arg.value for arg in args]
        writers: tuple[frozenset[int], ...] = ()
        if self.recording:
            writers = tuple(self._writers_of(value, state) for value in values)
        if rule is not None:
            try:
                result = rule(self, pc, args, state)
            except (IndexError, AttributeError, TypeError):  # arguments that the builtin will refuse
                result = UNKNOWN
        elif name is None:
            result = UNKNOWN
        elif self.program.executable.functions[words[2]].kind == PACKED_FUNC:
            if dst is None or name.startswith("kernel."):
                result = NONE
                for arg in args[len(args) - n_outputs(name) :]:
                    self._write(pc, arg.value, state)
            else:
                result = replace(made_of(values), origins=frozenset((pc,)))
        else:
            result = self._taken(pc, self.program.result_of_call(name, values), values)
        if dst is not None:
            state.registers[dst] = result
        return Step(pc, "call", words[2], dst, None, args, result, writers=writers)

    @staticmethod
    def _write(pc: int, value: Value, state: _State) -> None:
        for buffer in value.buffers:
            before = state.writers.get(buffer, frozenset()) if len(value.buffers) > 1 else frozenset()
            state.writers[buffer] = before | {pc}

    @staticmethod
    def _writers_of(value: Value, state: _State) -> frozenset[int]:
        empty: frozenset[int] = frozenset()
        return value.origins.union(*(state.writers.get(buffer, empty) for buffer in value.buffers))

    @staticmethod
    def _taken(pc: int, result: Value, args: list[Value]) -> Value:
        """A result of the call `pc`, which the callee may have taken from its arguments."""
        here = frozenset((pc,))
        if isinstance(result, (ShapeValue, ScalarValue)):
            return replace(result, origins=here)
        return traced(result, replace(made_of(args), origins=here))

    # ---- builtins. Each gets the instruction, its operands and the state, and returns the result.

    def _alloc_shape_heap(self, pc: int, args: list[Arg], state: _State) -> Value:
        return HeapValue(site=pc)

    def _heap(self, arg: Arg) -> int | None:
        return arg.value.site if isinstance(arg.value, HeapValue) else None

    def _number(self, arg: Arg) -> Size:
        value = arg.value
        if isinstance(value, ScalarValue) and not isinstance(value.number, float):
            return value.number
        return None

    def _int(self, arg: Arg) -> int:
        number = self._number(arg)
        if not isinstance(number, int):
            raise TypeError
        return number

    def _refine(self, arg: Arg, value: Value, state: _State) -> None:
        """A check has passed: from here on the register is known to hold this."""
        if arg.kind != "register":
            return
        before = state.registers.get(arg.index)
        state.registers[arg.index] = value
        params = self.facts.params
        if arg.index < len(params) and before is not None and before == params[arg.index]:
            params[arg.index] = value

    def _check_tensor_info(self, pc: int, args: list[Arg], state: _State) -> Value:
        value = args[0].value
        ndim = self._number(args[1])
        dtype = args[2].value.text if len(args) == 4 and isinstance(args[2].value, TextValue) else None
        shape: Dims | None = None
        if isinstance(value, TensorValue):
            shape, dtype = value.shape, dtype or value.dtype
        if isinstance(ndim, int) and 0 <= ndim <= _MAX_RANK and (shape is None or len(shape) != ndim):
            shape = (None,) * ndim
        constant = value.constant if isinstance(value, TensorValue) else None
        self._refine(args[0], traced(TensorValue(shape=shape, dtype=dtype, constant=constant), value), state)
        return NONE

    def _check_shape_info(self, pc: int, args: list[Arg], state: _State) -> Value:
        ndim = self._number(args[1])
        known = args[0].value
        if isinstance(ndim, int) and 0 <= ndim <= _MAX_RANK and not (isinstance(known, ShapeValue) and known.dims):
            self._refine(args[0], traced(ShapeValue(dims=(None,) * ndim), known), state)
        return NONE

    def _check_prim_value_info(self, pc: int, args: list[Arg], state: _State) -> Value:
        if not isinstance(args[0].value, ScalarValue):
            self._refine(args[0], traced(ScalarValue(), args[0].value), state)
        return NONE

    def _check_tuple_info(self, pc: int, args: list[Arg], state: _State) -> Value:
        n = self._number(args[1])
        value = args[0].value
        if isinstance(n, int) and 0 <= n <= 1024 and not isinstance(value, TupleValue):
            fields = tuple(traced(UNKNOWN, value) for _ in range(n))
            self._refine(args[0], traced(TupleValue(fields=fields), value), state)
        return NONE

    def _nothing(self, pc: int, args: list[Arg], state: _State) -> Value:
        return NONE

    def _match_shape(self, pc: int, args: list[Arg], state: _State) -> Value:
        value, n = args[0].value, self._int(args[2])
        if not 0 <= n <= _MAX_DIMS or len(args) != 4 + 2 * n:
            return NONE
        dims: list[Size] = [None] * n
        if isinstance(value, TensorValue) and value.shape is not None and len(value.shape) == n:
            dims = list(value.shape)
        elif isinstance(value, ShapeValue) and value.dims is not None and len(value.dims) == n:
            dims = list(value.dims)
        names = _names_of_dims(args[-1].value, n)
        heap = self._heap(args[1])
        for i in range(n):
            code, operand = self._int(args[3 + 2 * i]), self._int(args[4 + 2 * i])
            if code == 0:
                dims[i] = operand
            elif code == 1:
                known = dims[i]
                if known is None:
                    name = names[i] if names is not None and names[i].isidentifier() else f"d{pc}_{i}"
                    known = dims[i] = symbol(name)
                if heap is not None:
                    state.heap[heap, operand] = known
            elif code == 3 and heap is not None and (heap, operand) in state.heap:
                stored = state.heap[heap, operand]
                # A plain name says more than what it was computed from; a number says most.
                if (
                    dims[i] is None
                    or isinstance(stored, int)
                    or (isinstance(stored, SymVar) and not isinstance(dims[i], int))
                ):
                    dims[i] = stored
        if isinstance(value, ShapeValue):
            self._refine(args[0], replace(value, dims=tuple(dims)), state)
        elif isinstance(value, TensorValue):
            self._refine(args[0], replace(value, shape=tuple(dims)), state)
        return NONE

    def _match_prim_value(self, pc: int, args: list[Arg], state: _State) -> Value:
        code, operand = self._int(args[2]), self._int(args[3])
        heap = self._heap(args[1])
        number = self._number(args[0])
        if code == 0:
            self._refine(args[0], traced(ScalarValue(number=operand), args[0].value), state)
        elif code == 1 and heap is not None:
            if number is None:
                number = symbol(self._register_name(args[0], f"v{pc}"), nonnegative=False)
                self._refine(args[0], traced(ScalarValue(number=number), args[0].value), state)
            state.heap[heap, operand] = number
        elif code == 3 and heap is not None and (heap, operand) in state.heap and number is None:
            self._refine(args[0], traced(ScalarValue(number=state.heap[heap, operand]), args[0].value), state)
        return NONE

    def _register_name(self, arg: Arg, default: str) -> str:
        names = self.info.param_names
        if arg.kind == "register" and arg.index < min(len(names), self.info.num_args) and names[arg.index]:
            return names[arg.index]
        return default

    def _cell(self, code: Arg, operand: Arg, heap: int | None, state: _State) -> Size:
        if self._int(code) == 0:
            return self._int(operand)
        return None if heap is None else state.heap.get((heap, self._int(operand)))

    def _make_shape(self, pc: int, args: list[Arg], state: _State) -> Value:
        n, heap = self._int(args[1]), self._heap(args[0])
        if not 0 <= n <= 1024 or len(args) < 2 + 2 * n:
            return ShapeValue()
        return ShapeValue(dims=tuple(self._cell(args[2 + 2 * i], args[3 + 2 * i], heap, state) for i in range(n)))

    def _make_prim_value(self, pc: int, args: list[Arg], state: _State) -> Value:
        return ScalarValue(number=self._cell(args[1], args[2], self._heap(args[0]), state))

    def _shape_of(self, pc: int, args: list[Arg], state: _State) -> Value:
        value = args[0].value
        return ShapeValue(dims=value.shape if isinstance(value, TensorValue) else None)

    def _tensor_to_shape(self, pc: int, args: list[Arg], state: _State) -> Value:
        value = args[0].value
        if not isinstance(value, TensorValue) or value.shape is None or len(value.shape) != 1:
            return ShapeValue()
        n = value.shape[0]
        if value.constant is not None:
            data = self.program.executable.constants[value.constant]
            if isinstance(data, np.ndarray) and data.size <= _MAX_RANK and data.dtype.kind in "iu":
                return ShapeValue(dims=tuple(int(d) for d in data))
        return ShapeValue(dims=(None,) * n if isinstance(n, int) and 0 <= n <= _MAX_RANK else None)

    def _shape_to_tensor(self, pc: int, args: list[Arg], state: _State) -> Value:
        value = args[0].value
        n = len(value.dims) if isinstance(value, ShapeValue) and value.dims is not None else None
        return TensorValue(origins=frozenset((pc,)), shape=(n,), dtype="int64")

    def _plan_arena(self, pc: int, args: list[Arg], state: _State) -> Value:
        table = args[0].value
        if not isinstance(table, ShapeValue) or table.dims is None or len(table.dims) > 3 * _MAX_DIMS:
            return ShapeValue()
        n = len(table.dims) // 3
        if self.recording:
            words = tuple(word for word in table.dims if isinstance(word, int))
            self.facts.plans[pc] = words, [self._number(arg) for arg in args[1:]]
        return ShapeValue(dims=tuple(symbol(name) for name in names_of_plan(pc, n)))

    def _alloc_storage(self, pc: int, args: list[Arg], state: _State) -> Value:
        if self.recording:
            shape, dtype = args[1].value, args[3].value
            size = element_bytes(dtype.text) if isinstance(dtype, TextValue) else None
            nbytes = sizes.mul(*shape.dims, size) if isinstance(shape, ShapeValue) and shape.dims is not None else None
            self.facts.storages[pc] = nbytes
        return StorageValue(storages=frozenset((pc,)))

    def _alloc_tensor(self, pc: int, args: list[Arg], state: _State) -> Value:
        storage, shape, dtype = args[0].value, args[2].value, args[3].value
        dims = shape.dims if isinstance(shape, ShapeValue) else None
        text = dtype.text if isinstance(dtype, TextValue) else None
        value = TensorValue(frozenset((pc,)), storage.storages, shape=dims, dtype=text)
        state.writers.pop(pc, None)
        if self.recording:
            self.facts.allocations[pc] = storage.storages, self._number(args[1]), value
        return value

    def _copy(self, pc: int, args: list[Arg], state: _State) -> Value:
        return args[0].value

    def _reshape(self, pc: int, args: list[Arg], state: _State) -> Value:
        value, shape = args[0].value, args[1].value
        dims = shape.dims if isinstance(shape, ShapeValue) else None
        dtype = value.dtype if isinstance(value, TensorValue) else None
        return traced(TensorValue(shape=dims, dtype=dtype), value)

    def _to_device(self, pc: int, args: list[Arg], state: _State) -> Value:
        value = args[0].value
        if not isinstance(value, TensorValue):
            return UNKNOWN
        return TensorValue(origins=frozenset((pc,)), shape=value.shape, dtype=value.dtype)

    def _make_tuple(self, pc: int, args: list[Arg], state: _State) -> Value:
        return tuple_of(tuple(arg.value for arg in args))

    def _tuple_getitem(self, pc: int, args: list[Arg], state: _State) -> Value:
        value, index = args[0].value, self._number(args[1])
        if isinstance(value, TupleValue) and isinstance(index, int) and 0 <= index < len(value.fields):
            return value.fields[index]
        return traced(UNKNOWN, value)

    def _tuple_reset_item(self, pc: int, args: list[Arg], state: _State) -> Value:
        value, index = args[0].value, self._number(args[1])
        if isinstance(value, TupleValue) and isinstance(index, int) and 0 <= index < len(value.fields):
            fields = (*value.fields[:index], NONE, *value.fields[index + 1 :])
            self._refine(args[0], replace(value, fields=fields), state)
        return NONE

    def _read_if_cond(self, pc: int, args: list[Arg], state: _State) -> Value:
        return ScalarValue(origins=frozenset((pc,)))

    def _make_closure(self, pc: int, args: list[Arg], state: _State) -> Value:
        memory = made_of(arg.value for arg in args)
        function = args[0].value
        if not isinstance(function, FunctionValue) or len(function.saved) + len(args) > 64:
            return memory
        saved = (*(arg.value for arg in args[1:]), *function.saved)
        if _nesting(saved) > 8:
            return memory
        return traced(FunctionValue(name=function.name, saved=saved), memory)

    def _invoke_closure(self, pc: int, args: list[Arg], state: _State) -> Value:
        function = args[1].value
        values = [arg.value for arg in args[2:]]
        if not isinstance(function, FunctionValue):
            return self._taken(pc, UNKNOWN, [function, *values])
        result = self.program.result_of_call(function.name, [*values, *function.saved])
        return self._taken(pc, result, [function, *values])

    def _eval_shape_expr(self, pc: int, args: list[Arg], state: _State) -> Value:
        heap, slot, program = self._heap(args[0]), self._int(args[1]), args[2].value
        if heap is None:
            return NONE
        value = None
        if isinstance(program, ShapeValue) and program.dims is not None:
            value = _evaluate_postfix(program.dims, lambda cell: state.heap.get((heap, cell)))
        self._store(heap, slot, value, pc, state)
        return NONE

    def _store_dim(self, pc: int, args: list[Arg], state: _State) -> Value:
        heap, slot = self._heap(args[0]), self._int(args[1])
        if heap is not None:
            self._store(heap, slot, self._number(args[2]), pc, state)
        return NONE

    def _store(self, heap: int, slot: int, value: Size, pc: int, state: _State) -> None:
        if value is None:
            value = symbol(f"s{pc}")
        state.heap[heap, slot] = value

    def _tensor_scalar(self, pc: int, args: list[Arg], state: _State) -> Value:
        value = args[0].value
        if isinstance(value, TensorValue) and value.constant is not None:
            data = self.program.executable.constants[value.constant]
            if isinstance(data, np.ndarray) and data.size == 1 and data.dtype.kind in "iu":
                return ScalarValue(number=int(data.reshape(-1)[0]))
        return ScalarValue(origins=frozenset((pc,)), number=symbol(f"v{pc}", nonnegative=False))


def _nesting(saved: tuple[Value, ...]) -> int:
    """How deep closures capture closures."""
    depth = 0
    level = list(saved)
    while level and depth <= 8:
        depth += 1
        level = [inner for f in level if isinstance(f, FunctionValue) for inner in f.saved][:4096]
    return depth


def _evaluate_postfix(program: Dims, load: Callable[[int], Size]) -> Size:
    """The value of a program of `pyvm.builtin.eval_shape_expr`; None if it is not known."""
    stack: list[Size] = []
    arithmetic: tuple[Callable[[Size, Size], Size], ...] = (
        sizes.add,
        sizes.sub,
        sizes.mul,
        sizes.div,
        sizes.mod,
        sizes.smaller,
        sizes.larger,
    )
    for code, operand in zip(program[::2], program[1::2], strict=False):
        if code == 0:
            stack.append(operand)
        elif code == 1 and isinstance(operand, int):
            stack.append(load(operand))
        elif isinstance(code, int) and 2 <= code < 2 + len(arithmetic) and len(stack) > 1:
            b, a = stack.pop(), stack.pop()
            stack.append(arithmetic[code - 2](a, b))
        else:
            return None
    return stack[0] if len(stack) == 1 else None


_Rule = Callable[[_FunctionWalk, int, list[Arg], _State], Value]
_W = _FunctionWalk
_RULES: dict[str, _Rule] = {
    "vm.builtin.alloc_shape_heap": _W._alloc_shape_heap,
    "vm.builtin.alloc_storage": _W._alloc_storage,
    "vm.builtin.alloc_tensor": _W._alloc_tensor,
    "vm.builtin.check_func_info": _W._nothing,
    "vm.builtin.check_prim_value_info": _W._check_prim_value_info,
    "vm.builtin.check_shape_info": _W._check_shape_info,
    "vm.builtin.check_string_info": _W._nothing,
    "vm.builtin.check_tensor_info": _W._check_tensor_info,
    "vm.builtin.check_tuple_info": _W._check_tuple_info,
    "vm.builtin.copy": _W._copy,
    "vm.builtin.ensure_zero_offset": _W._copy,
    "vm.builtin.invoke_closure": _W._invoke_closure,
    "vm.builtin.make_closure": _W._make_closure,
    "vm.builtin.make_prim_value": _W._make_prim_value,
    "vm.builtin.make_shape": _W._make_shape,
    "vm.builtin.make_tuple": _W._make_tuple,
    "vm.builtin.match_prim_value": _W._match_prim_value,
    "vm.builtin.match_shape": _W._match_shape,
    "vm.builtin.null_value": _W._nothing,
    "vm.builtin.read_if_cond": _W._read_if_cond,
    "vm.builtin.reshape": _W._reshape,
    "vm.builtin.shape_of": _W._shape_of,
    "vm.builtin.tensor_to_shape": _W._tensor_to_shape,
    "vm.builtin.to_device": _W._to_device,
    "vm.builtin.tuple_getitem": _W._tuple_getitem,
    "vm.builtin.tuple_reset_item": _W._tuple_reset_item,
    "pyvm.builtin.eval_shape_expr": _W._eval_shape_expr,
    "pyvm.builtin.check_upper_bound": _W._nothing,
    "pyvm.builtin.plan_arena": _W._plan_arena,
    "pyvm.builtin.shape_to_tensor": _W._shape_to_tensor,
    "pyvm.builtin.store_dim": _W._store_dim,
    "pyvm.builtin.tensor_scalar": _W._tensor_scalar,
}
