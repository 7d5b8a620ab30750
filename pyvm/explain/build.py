"""From an executable to its explanation."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pyvm.checked_calls import checked
from pyvm.executable import PACKED_FUNC, VM_FUNC, VMExecutable
from vmcore.arguments import wrong_type
from vmcore.errors import ArgumentTypeError, ArgumentValueError, VMError
from vmcore.isa import format_instruction, register_name

from . import sizes
from .analysis import Program
from .costs import (
    CONTROL,
    ELEMENTWISE,
    MEMORY,
    OTHER,
    PRODUCT,
    REDUCTION,
    Work,
    is_kernel,
    work_of_builtin,
    work_of_call,
    work_of_kernel,
)
from .facts import FunctionFacts, Step, names_of_plan
from .memory import find_buffers
from .model import ArenaPlan, Explanation, FunctionExplanation, Instruction, Operand
from .values import Arg, ScalarValue, TensorValue, Value

if TYPE_CHECKING:
    from pyvm.profile import Profile

_MAX_VALUE_TEXT = 200


@checked
def explain(
    executable: VMExecutable,
    dims: Mapping[str, Any] | None = None,
    profile: Profile | None = None,
    name: str = "",
) -> Explanation:
    """Explains an executable; see `VMExecutable.explain`."""
    given = _checked_dims({} if dims is None else dims)
    if profile is not None and not hasattr(profile, "by_instruction"):  # a Profile: serving has that class
        raise wrong_type("explain", "profile", "a pyvm.profile.Profile", profile)
    problem = ""
    try:
        executable.verify()
    except VMError as error:
        problem = str(error) or type(error).__name__
    program = Program(executable)
    functions: list[FunctionExplanation] = []
    taken: set[int] = set()  # instructions: a program that does not verify may give one to two functions
    others: list[tuple[str, str]] = []
    for index, info in enumerate(executable.functions):
        if info.kind != VM_FUNC:
            others.append((info.name, "called" if info.kind == PACKED_FUNC else "compiled"))
            continue
        begin, end = max(info.start_instr, 0), min(info.end_instr, program.n_instructions)
        if any(pc in taken for pc in range(begin, max(end, begin))):
            problem = problem or f"function {info.name!r} shares instructions with another one"
            continue
        taken.update(range(begin, end))
        functions.append(_Function(program, program.facts(index)).explanation())
    result = Explanation(
        name or "executable",
        functions,
        others,
        given,
        sum(constant.nbytes for constant in executable.constants if isinstance(constant, np.ndarray)),
        len(executable.constants),
        dict(executable.metadata),
        problem,
    )
    if profile is not None:
        _add_profile(result, profile)
    return result


def _checked_dims(dims: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(dims, Mapping):
        raise ArgumentTypeError(f'explain: dims must be a mapping such as {{"n": 3}}, got {type(dims).__name__}')
    result = {}
    for name, value in dims.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise ArgumentValueError(f"explain: dims[{name!r}] is {value!r}, not an integer of at least 0")
        result[str(name)] = int(value)
    return result


def _add_profile(explanation: Explanation, profile: Profile) -> None:
    explanation.profile_ns = profile.total_ns
    explanation.profiled = profile.name
    by_pc = {i.pc: i for function in explanation.functions for i in function.instructions}
    for row in profile.by_instruction():
        instruction = by_pc.get(row.pc)
        if instruction is not None:
            instruction.calls, instruction.total_ns, instruction.self_ns = row.calls, row.total_ns, row.self_ns


def _writers_of_parts(function: FunctionExplanation, buffers: set[int], pc: int) -> set[int]:
    """The instructions that made what a buffer is joined from, if nothing has written it before `pc`."""
    writers: set[int] = set()
    waiting, seen = [id for id in buffers if id in function.buffers and function.buffers[id].joins], set(buffers)
    while waiting:
        buffer = function.buffers[waiting.pop()]
        before = [writer for writer in buffer.writers if writer < pc]
        if before or not buffer.joins:
            writers.update(before[-1:])
            continue
        waiting += [id for id in buffer.joins if id not in seen]
        seen.update(buffer.joins)
    return writers


def _short(text: str) -> str:
    return text if len(text) <= _MAX_VALUE_TEXT else text[: _MAX_VALUE_TEXT - 3] + "..."


class _Function:
    def __init__(self, program: Program, facts: FunctionFacts) -> None:
        self._program = program
        self._facts = facts
        self._executable = program.executable
        self._debug = self._executable.debug
        self._names = [info.name for info in self._executable.functions]

    def explanation(self) -> FunctionExplanation:
        facts, info = self._facts, self._facts.info
        works: dict[int, Work] = {}
        callees: dict[int, str] = {}
        instructions: list[Instruction] = []
        for step in facts.steps:
            instruction = self._instruction(step, works)
            if instruction.callee:
                callees[step.pc] = instruction.callee
            instructions.append(instruction)
        noted = self._executable.metadata.get(f"arena_bytes:{info.name}", "")
        arena_bytes = int(noted) if noted.isdecimal() and len(noted) < 19 else None
        buffers, storages = find_buffers(facts, works, callees, arena_bytes)
        begin = facts.steps[0].pc if facts.steps else 0
        names = [param for param in info.param_names[: len(facts.params)]]
        names += [f"arg{i}" for i in range(len(names), len(facts.params))]
        function = FunctionExplanation(
            info.name,
            [(name, _short(str(value))) for name, value in zip(names, facts.params, strict=True)],
            self._results(),
            info.register_file_size,
            begin,
            begin + len(instructions),
            instructions,
            buffers,
            storages,
            [],
            any(step.opcode in ("if", "goto") for step in facts.steps),
            facts.approximate,
        )
        self._link(function, works)
        function.plans = [
            ArenaPlan(pc, table, wanted, names_of_plan(pc, len(table) // 3))
            for pc, (table, wanted) in facts.plans.items()
        ]
        function.symbols = _symbols(function, facts)
        return function

    def _results(self) -> str:
        """What it returns; where the walk does not know, what the signature says."""
        signature = self._executable.signatures.get(self._facts.info.name)
        if "?" in str(self._facts.result) and signature is not None and signature.results:
            return _short(", ".join(map(str, signature.results)))
        return _short(str(self._facts.result))

    def _source(self, pc: int) -> str | None:
        return self._debug[pc] if pc < len(self._debug) else None

    def _instruction(self, step: Step, works: dict[int, Work]) -> Instruction:
        executable = self._executable
        text = format_instruction(executable.instr_data, int(executable.instr_offset[step.pc]), self._names)
        result = Instruction(step.pc, step.opcode, text, source=self._source(step.pc), reached=step.reached)
        result.target, result.dst = step.target, step.dst
        if step.opcode != "call":
            result.kernel, result.category = step.opcode, CONTROL
            result.operands = [self._operand("value", "input", arg) for arg in step.args]
            if step.opcode == "malformed":
                result.category = OTHER
                result.why.append("this is no instruction")
            elif step.opcode == "goto" and step.target is not None and step.target <= step.pc:
                result.why.append("goes back: a loop, which needs no frame of its own")
            elif step.opcode == "if":
                result.why.append(f"goes on when the register is not zero, else to {step.target}")
            return result
        work = works[step.pc] = self._work(step)
        result.callee = self._program.function_name(step.callee) or f"f[{step.callee}]"
        result.kernel, result.category, result.label = work.kernel, work.category, work.label
        for role, operands in (("output", work.outputs), ("input", work.inputs), ("setting", work.settings)):
            result.operands += [self._operand(operand.name, role, operand.arg) for operand in operands]
        order = {id(arg): i for i, arg in enumerate(step.args)}
        positions = {
            id(shown): order.get(id(operand.arg), 0)
            for shown, operand in zip(result.operands, (*work.outputs, *work.inputs, *work.settings), strict=True)
        }
        result.operands.sort(key=lambda shown: positions[id(shown)])
        result.flops, result.macs = work.flops, work.macs
        result.bytes_read, result.bytes_written = work.bytes_read, work.bytes_written
        if step.dst is not None:
            result.result = _short(str(step.result))
        result.why += self._recorded(step.pc)
        result.why += work.way
        if not step.reached:
            result.why.append("no path leads here")
        return result

    def _recorded(self, pc: int) -> list[str]:
        """What the compiler noted about this instruction."""
        text = self._executable.notes[pc]
        return text.split("\n") if text else []

    def _work(self, step: Step) -> Work:
        name = self._program.function_name(step.callee)
        if name is None:
            return Work(f"f[{step.callee}]", OTHER, flops=None, macs=None, bytes_read=None, bytes_written=None)
        info = self._executable.functions[step.callee]
        if info.kind == PACKED_FUNC:
            if is_kernel(name):
                return work_of_kernel(name, step.args)
            if name.startswith(("vm.builtin.", "pyvm.builtin.")):
                return work_of_builtin(name, step.args)
            if step.dst is None:
                return work_of_kernel(name, step.args)
            work = work_of_call(name, step.args, ())
            work.category = OTHER
            return work
        work = work_of_call(name, step.args, info.param_names)
        work.way.append(f"see @{name}" if info.kind == VM_FUNC else "compiled code")
        return work

    def _operand(self, name: str, role: str, arg: Arg) -> Operand:
        value: Value = arg.value
        where = {
            "register": lambda: register_name(arg.index),
            "immediate": lambda: str(arg.index),
            "constant": lambda: f"c[{arg.index}]",
            "function": lambda: f"f[{arg.index}]",
            "none": lambda: "%void",
            "vm": lambda: "%vm",
            "word": lambda: f"?{arg.index:#x}",
        }[arg.kind]()
        shown = Operand(name, role, where, _short(str(value)), buffers=tuple(sorted(value.buffers)))
        if isinstance(value, TensorValue):
            shown.shape, shown.dtype, shown.nbytes = value.shape, value.dtype, value.nbytes
        return shown

    def _link(self, function: FunctionExplanation, works: Mapping[int, Work]) -> None:
        """Who computed what an instruction reads; reasons that follow from that."""
        by_pc = {i.pc: i for i in function.instructions}
        for step in self._facts.steps:
            instruction = by_pc[step.pc]
            fed_by: set[int] = set()
            work = works.get(step.pc)
            if step.opcode in ("ret", "if"):
                fed_by |= step.args[0].value.origins
                for writers in step.writers:
                    fed_by |= writers
            elif work is not None and (work.category not in (MEMORY,)):
                written = {id(operand.arg) for operand in work.outputs}
                for arg, writers in zip(step.args, step.writers, strict=False):
                    if id(arg) not in written:
                        fed_by |= writers
            if fed_by or step.opcode == "ret" or work is not None:
                written = {id(operand.arg) for operand in work.outputs} if work is not None else set()
                read = {buffer for arg in step.args if id(arg) not in written for buffer in arg.value.buffers}
                fed_by |= _writers_of_parts(function, read, step.pc)
            instruction.fed_by = sorted(fed_by)
            for pc in instruction.fed_by:
                if pc in by_pc and pc != step.pc:
                    by_pc[pc].feeds.append(step.pc)
        for step in self._facts.steps:
            instruction = by_pc[step.pc]
            for pc in step.released:
                instruction.releases.append(pc)
        for buffer in function.buffers.values():
            if buffer.id in by_pc:
                maker = by_pc[buffer.id]
                maker.allocates.append(buffer.id)
                maker.why.append(buffer.why)
            if buffer.end in by_pc and not buffer.escapes:
                by_pc[buffer.end].ends.append(buffer.id)
            if buffer.writers:
                buffer.source = self._source(buffer.writers[0])
            else:
                buffer.source = self._source(buffer.id)
        for storage in function.storages.values():
            if storage.id in by_pc:
                by_pc[storage.id].why.append(self._why_storage(storage.kind, len(storage.buffers), storage.escapes))
        for pc, work in works.items():
            by_pc[pc].why += _in_place(work)
            by_pc[pc].why += _separate(function, by_pc[pc], work)

    @staticmethod
    def _why_storage(kind: str, n: int, escapes: str) -> str:
        if kind == "arena":
            return f"the arena: {n} tensors share it by address, planned at compile time"
        text = f"memory for {n} tensor{'s' * (n != 1)}, asked for when the function runs"
        return text + (f": what lies in it {escapes}" if escapes else "")


def _in_place(work: Work) -> list[str]:
    reasons = []
    for out in work.outputs:
        for operand in work.inputs:
            if operand.arg.value.buffers and operand.arg.value.buffers == out.arg.value.buffers:
                reasons.append(f"in place: overwrites {operand.name}, which nothing reads afterwards")
                break
    return reasons


def _separate(function: FunctionExplanation, i: Instruction, work: Work) -> list[str]:
    """Why a call does not overwrite its input, and why it is not part of the product that made it."""
    if work.category not in (ELEMENTWISE, REDUCTION) or not work.outputs or not work.inputs:
        return []
    reasons = []
    out = work.outputs[0]
    in_place = any(o.arg.value.buffers and o.arg.value.buffers == out.arg.value.buffers for o in work.inputs)
    for operand in work.inputs:
        same = operand.tensor is not None and out.tensor is not None and operand.tensor.shape == out.tensor.shape
        if not same or operand.tensor is None or operand.tensor.dtype != out.tensor.dtype:  # type: ignore[union-attr]
            continue
        buffers = [function.buffers[id] for id in operand.arg.value.buffers if id in function.buffers]
        if not buffers:
            if not in_place and operand.tensor.constant is None:
                reasons.append(f"not in place: {operand.name} belongs to the caller")
            continue
        found = [bisect.bisect_right(buffer.readers, i.pc) for buffer in buffers]
        later = [buffer.readers[at] for buffer, at in zip(buffers, found, strict=True) if at < len(buffer.readers)]
        if later and not in_place:
            reasons.append(f"not in place: {operand.name} is read again at {min(later)}")
        makers = [pc for pc in i.fed_by if function.begin <= pc < function.end]
        products = [pc for pc in makers if function.instruction(pc).category == PRODUCT]
        if later and len(products) == 1:
            maker = function.instruction(products[0])
            reasons.append(f"not part of the {maker.kernel} at {maker.pc}: its result is read at {min(later)}, too")
    return reasons[:2]


def _symbols(function: FunctionExplanation, facts: FunctionFacts) -> list[str]:
    """Symbols that sizes depend on: those of parameters first, in their order."""
    used: set[str] = set()
    for storage in function.storages.values():
        used |= sizes.symbols(storage.nbytes)
    for buffer in function.buffers.values():
        used |= sizes.symbols(buffer.nbytes)
    for instruction in function.instructions:
        for size in (instruction.flops, instruction.bytes_read, instruction.bytes_written):
            used |= sizes.symbols(size)
    ordered: dict[str, None] = {}
    for param in facts.params:
        shape = param.shape if isinstance(param, TensorValue) else getattr(param, "dims", None)
        if isinstance(param, ScalarValue) and not isinstance(param.number, float):
            shape = (param.number,)
        for dim in shape or ():
            for name in sorted(sizes.symbols(dim)):
                if name in used:
                    ordered[name] = None
    for plan in function.plans:
        used -= set(plan.names)
        used |= {name for size in plan.sizes for name in sizes.symbols(size)}
    return [*ordered, *sorted(used - set(ordered))]
