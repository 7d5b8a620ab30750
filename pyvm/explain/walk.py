"""The walk over the instructions of one function."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pyvm.executable import PACKED_FUNC, FunctionInfo
from pyvm.signature import ObjectSpec, Spec
from vmcore.isa import VM_REGISTER, VOID_REGISTER, ArgKind, Opcode, unpack_arg

from .builtin_rules import RULES
from .costs import n_outputs
from .facts import FunctionFacts, State, Step, value_of_spec
from .values import (
    NONE,
    UNKNOWN,
    Arg,
    FunctionValue,
    ScalarValue,
    ShapeValue,
    Value,
    join,
    made_of,
    traced,
    without_memory,
)

if TYPE_CHECKING:
    from .analysis import Program

_CALL, _RET, _GOTO, _IF = (int(op) for op in (Opcode.OP_CALL, Opcode.OP_RET, Opcode.OP_GOTO, Opcode.OP_IF))
_REGISTER, _IMMEDIATE, _CONSTANT, _FUNCTION = (
    int(kind) for kind in (ArgKind.ARG_REGISTER, ArgKind.ARG_IMMEDIATE, ArgKind.ARG_CONSTANT, ArgKind.ARG_FUNCTION)
)
_MAX_STATE_CELLS = 4_000_000  # registers times blocks, beyond which blocks are looked at one by one
_EXACT_AFTER = 4  # visits of a block after which what differs is unknown altogether


class FunctionWalk:
    """Follows the bytecode of one function to a fixpoint, then notes what every instruction works on."""

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
        start = State(dict(enumerate(seeds)), {}, {})
        blocks = self._blocks()
        written = len({step[1] for step in map(self.program.words, range(self.begin, self.end)) if step[:1] == [_CALL]})
        if len(blocks) * (written + len(seeds)) > _MAX_STATE_CELLS:
            facts.approximate = True
            states: dict[int, State] = {self.begin: start}
        else:
            states = self._fixpoint(start, blocks)
        self._record(states, blocks)
        return facts

    def _specs(self) -> list[Spec]:
        n = max(self.info.num_args, 0)
        signature = self.program.executable.signatures.get(self.info.name)
        specs = list(signature.params[:n]) if signature is not None else []
        names = self.info.param_names or [f"arg{i}" for i in range(min(n, 65536))]
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

    def _fixpoint(self, start: State, blocks: list[tuple[int, int, list[int]]]) -> dict[int, State]:
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

    def _record(self, states: dict[int, State], blocks: list[tuple[int, int, list[int]]]) -> None:
        """The last pass over the text, which notes what every instruction works on."""
        self.recording = True
        facts = self.facts
        results: list[Value] = []
        for first, last, _ in blocks:
            known = states.get(first)
            reached = known is not None or facts.approximate
            state = known.copy() if known is not None else State({}, {}, {})
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

    def _step(self, pc: int, state: State) -> Step:
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

    def _register(self, register: int, state: State) -> Arg:
        if register == VOID_REGISTER:
            return Arg("none", register, NONE)
        if register == VM_REGISTER:
            return Arg("vm", register, UNKNOWN)
        return Arg("register", register, state.registers.get(register, UNKNOWN))

    def _arg(self, word: int, state: State) -> Arg:
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

    def _call(self, pc: int, words: list[int], state: State) -> Step:
        args = [self._arg(word, state) for word in words[4:]]
        dst = words[1] if 0 <= words[1] < VOID_REGISTER else None
        name = self.program.function_name(words[2])
        rule = RULES.get(name) if name is not None else None
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
            result = self.taken(pc, self.program.result_of_call(name, values), values)
        if dst is not None:
            state.registers[dst] = result
        return Step(pc, "call", words[2], dst, None, args, result, writers=writers)

    @staticmethod
    def _write(pc: int, value: Value, state: State) -> None:
        for buffer in value.buffers:
            before = state.writers.get(buffer, frozenset()) if len(value.buffers) > 1 else frozenset()
            state.writers[buffer] = before | {pc}

    @staticmethod
    def _writers_of(value: Value, state: State) -> frozenset[int]:
        empty: frozenset[int] = frozenset()
        return value.origins.union(*(state.writers.get(buffer, empty) for buffer in value.buffers))

    @staticmethod
    def taken(pc: int, result: Value, args: list[Value]) -> Value:
        """A result of the call `pc`, which the callee may have taken from its arguments."""
        here = frozenset((pc,))
        if isinstance(result, (ShapeValue, ScalarValue)):
            return replace(result, origins=here)
        return traced(result, replace(made_of(args), origins=here))
