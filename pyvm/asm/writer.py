"""The disassembler: an executable as assembler text."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from pyvm.checked_calls import checked
from vmcore.errors import FormatError
from vmcore.isa import MAX_ARGS, VOID_REGISTER, register_name, unpack_arg

from ..constants import constant_key, is_constant
from ..executable import PACKED_FUNC, PACKED_NUM_ARGS, VM_FUNC, VMTIR_FUNC, DebugInfo, FunctionInfo, VMExecutable
from .literals import constant_text, function_text, param_text, quoted
from .words import CALL, CONSTANT, FUNCTION, GOTO, IF, IMMEDIATE, IMMEDIATE_LIMIT, REGISTER, RET, instructions, is_whole

_WORDS_IN_LINE = 16


class _Disassembler:
    def __init__(self, executable: VMExecutable) -> None:
        self.executable = executable
        for info in executable.functions:
            numbers = (info.kind, info.num_args, info.start_instr, info.end_instr, info.register_file_size)
            if not isinstance(info.name, str) or not all(isinstance(number, int) for number in numbers):
                raise FormatError(f"cannot be written as text: {info!r} is not made of integers and strings")
        if not all(isinstance(scope, str) for scope in executable.memory_scopes.values()):
            raise FormatError("cannot be written as text: a memory scope is no string")
        try:
            self.code = instructions(executable)
            self.is_cut = True
        except FormatError:
            self.code, self.is_cut = [], False
        self.names = [info.name for info in executable.functions]
        self.first: dict[str, int] = {}  # a name that comes twice means the first
        for index, name in enumerate(self.names):
            self.first.setdefault(name, index)
        self.bodies = self._bodies() if self.is_cut else None
        self.inline = self._inline_constants()

    def _bodies(self) -> list[FunctionInfo] | None:
        """The bytecode functions in the order of their code; None if the table has what only `entry` can say."""
        functions = self.executable.functions
        if len(set(self.names)) != len(self.names) or "" in self.names:
            return None
        at = 0
        bodies = [info for info in functions if info.kind == VM_FUNC]
        bodies.sort(key=lambda info: (info.start_instr, info.end_instr))
        for info in bodies:
            if info.start_instr != at or info.end_instr < at:
                return None
            at = info.end_instr
        if at != len(self.code):
            return None
        for info in functions:
            others = (info.start_instr, info.end_instr)
            packed = (info.num_args, info.register_file_size, info.param_names)
            if (
                info.kind not in (PACKED_FUNC, VM_FUNC, VMTIR_FUNC)
                or (info.kind != VM_FUNC and others != (0, 0))
                or (info.kind == PACKED_FUNC and packed != (PACKED_NUM_ARGS, 0, []))
                or not all(-(2**63) <= n < 2**63 for n in (info.num_args, info.register_file_size))
            ):
                return None
        return bodies

    def _constant_uses(self) -> Iterator[int]:
        for words in self.code:
            if words[0] == CALL and is_whole(words):
                for word in words[4:]:
                    kind, value = unpack_arg(word)
                    if kind == CONSTANT:
                        yield value

    def _inline_constants(self) -> set[int]:
        """Constants printed where they are used: all that are no tensors, if the assembler would number them alike."""
        constants = self.executable.constants

        def can(index: int) -> bool:
            value = constants[index]
            small = isinstance(value, int) and -IMMEDIATE_LIMIT <= value < IMMEDIATE_LIMIT
            return is_constant(value) and not isinstance(value, np.ndarray) and not small

        used = list(dict.fromkeys(i for i in self._constant_uses() if 0 <= i < len(constants)))
        inline = [i for i in used if can(i)]
        explicit = set(range(len(constants))) - set(inline)
        free = (i for i in range(len(constants)) if i not in explicit)
        seen = {constant_key(constants[i]) for i in explicit if is_constant(constants[i])}
        for index in inline:
            key = constant_key(constants[index])
            if key in seen or next(free) != index:
                return set()
            seen.add(key)
        return set(inline)

    def _arg(self, word: int) -> str:
        kind, value = unpack_arg(word)
        if kind == REGISTER:
            return register_name(value)
        if kind == IMMEDIATE:
            return str(value)
        if kind == CONSTANT:
            return constant_text(self.executable.constants[value]) if value in self.inline else f"c[{value}]"
        if kind == FUNCTION:
            return self._function(value)
        return f"word({word})"

    def _function(self, index: int) -> str:
        if 0 <= index < len(self.names) and self.first[self.names[index]] == index:
            return function_text(self.names[index])
        return f"f[{index}]"

    def _header(self, keyword: str, info: FunctionInfo) -> str:
        names = info.param_names
        if 0 <= info.num_args <= MAX_ARGS and len(names) in (0, info.num_args):
            params = [f"%{i} {param_text(names[i])}" if names else f"%{i}" for i in range(info.num_args)]
            return f"{keyword} {function_text(info.name)}({', '.join(params)}) regs={info.register_file_size}"
        texts = "" if not names else f" params=[{', '.join(map(quoted, names))}]"
        return f"{keyword} {function_text(info.name)} args={info.num_args}{texts} regs={info.register_file_size}"

    def _entry(self, info: FunctionInfo) -> str:
        plain = FunctionInfo(PACKED_FUNC, info.name)
        fields = ("kind", "num_args", "start_instr", "end_instr", "register_file_size")
        text = f"entry {function_text(info.name)}"
        for key, field in zip(("kind", "args", "start", "end", "regs"), fields, strict=True):
            value = getattr(info, field)
            if value != getattr(plain, field):
                text += f" {key}={value}"
        return text + (f" params=[{', '.join(map(quoted, info.param_names))}]" if info.param_names else "")

    def _rows(self) -> Iterator[list[str]]:
        """The table and the code where they do not fit each other: sections of text."""
        executable = self.executable
        yield [self._entry(info) for info in executable.functions]
        if self.is_cut:
            yield ["code", *self._body(0, len(self.code))]
        else:
            for keyword, values in (("words", executable.instr_data), ("offsets", executable.instr_offset)):
                numbers = values.tolist()
                yield [
                    f"{keyword} {', '.join(map(str, numbers[i : i + _WORDS_IN_LINE]))}"
                    for i in range(0, len(numbers), _WORDS_IN_LINE)
                ]

    def _body(self, start: int, end: int) -> Iterator[str]:
        targets: dict[int, int] = {}
        for pc in range(start, end):
            words = self.code[pc]
            if words[0] in (GOTO, IF) and is_whole(words) and start <= pc + words[-1] < end:
                targets[pc] = pc + words[-1]
        labels = set(targets.values())
        for pc in range(start, end):
            if pc in labels:
                yield f"L{pc}:"
            tail = ""
            for mark, texts in (("!", self.executable.debug), ("?", self.executable.notes)):
                if self._by_instruction(texts) and texts[pc] is not None:
                    tail += f"  {mark} {quoted(texts[pc])}"
            yield "  " + self._instruction(pc, targets) + tail

    def _by_instruction(self, texts: DebugInfo) -> bool:
        return self.is_cut and len(texts) in (0, len(self.code))

    def _instruction(self, pc: int, targets: dict[int, int]) -> str:
        words = self.code[pc]
        if not is_whole(words):
            return f"{'raw':5} {', '.join(map(str, words))}"
        if words[0] == RET:
            return f"{'ret':5} {register_name(words[1])}"
        if words[0] == CALL:
            result = "" if words[1] == VOID_REGISTER else f" -> {register_name(words[1])}"
            return f"{'call':5} {self._function(words[2])} ({', '.join(map(self._arg, words[4:]))}){result}"
        target = f"L{targets[pc]}" if pc in targets else f"{words[-1]:+d}"
        return f"{'goto':5} {target}" if words[0] == GOTO else f"{'if':5} {register_name(words[1])}, {target}"

    def _mentions(self, bodies: list[FunctionInfo]) -> list[str]:
        """Function names in the order in which the assembler meets them in what follows the table statement."""
        order: dict[str, None] = {}
        for info in bodies:
            order[info.name] = None
            for words in self.code[info.start_instr : info.end_instr]:
                if words[0] != CALL or not is_whole(words):
                    continue
                indices = [words[2], *(unpack_arg(w)[1] for w in words[4:] if unpack_arg(w)[0] == FUNCTION)]
                order.update((self.names[i], None) for i in indices if 0 <= i < len(self.names))
        order.update((info.name, None) for info in self.executable.functions if info.kind == VMTIR_FUNC)
        return list(order)

    def text(self) -> str:
        executable, constants = self.executable, self.executable.constants
        sections: list[list[str]] = []
        if self.bodies is None:
            sections += self._rows()
        else:
            if self._mentions(self.bodies) != self.names:
                sections.append([f"table {', '.join(map(function_text, self.names))}"])
            sections += [[self._header("func", f), *self._body(f.start_instr, f.end_instr)] for f in self.bodies]
            sections.append([self._header("native", f) for f in executable.functions if f.kind == VMTIR_FUNC])
        for keyword, texts in (("debug", executable.debug), ("notes", executable.notes)):
            if not self._by_instruction(texts):
                listed = ", ".join("none" if text is None else quoted(text) for text in texts)
                sections.append([f"{keyword} [{listed}]"])
        explicit = [i for i in range(len(constants)) if i not in self.inline]
        sections.append([f"c[{i}] = {constant_text(constants[i])}" for i in explicit])
        sections.append([f"scope c[{i}] = {quoted(scope)}" for i, scope in executable.memory_scopes.items()])
        sections.append(
            [f"signature {function_text(n)} {json.dumps(s.to_json())}" for n, s in executable.signatures.items()]
        )
        sections.append([f"meta {quoted(key)} = {quoted(value)}" for key, value in executable.metadata.items()])
        return "\n".join("".join(f"{line}\n" for line in lines) for lines in sections if lines)


@checked
def disassemble(executable: VMExecutable) -> str:
    """The executable as assembler text.

    Raises
    ------
    FormatError
        If the executable has no text: fields that are no integers, names that are no strings, objects in the pool that
        no text says.
    """
    return _Disassembler(executable).text()
