"""Assembler text: written by hand in tests, printed by `pyvm dis`. `assemble(disassemble(e)) == e` for every executable
whose words are a sequence of instructions, whether or not the verifier accepts it.

    ; a comment
    func @main(%0 x, %1 flag) regs=3
      if    %1, negative
      call  @kernel.relu (%0, 1, 0.5, "text", shape(2, 3), dtype(float32), @main, %void, %vm) -> %2  ! "relu (Relu-14)"
      goto  done
    negative:
      call  @kernel.neg (%0, c[0]) -> %2
    done:
      ret   %2

    c[0] = tensor float32 (2, 2) [1, 2, 3, 4]

Statements
    func @NAME(%0 NAME, ...) regs=N     a bytecode function; the instructions and `label:` lines after it are its body.
                                        Parameter names and regs= (else: the registers mentioned) may be left out.
                                        `args=N params=["a"]` instead of the list can also say what is wrong.
    native @NAME(%0, ...) regs=N        a compiled function
    call @F (args) -> %dst              without `->` the result is dropped
    ret %r  ·  goto T  ·  if %r, T      T is a label or an offset in instructions with its sign (+2)
    raw W, W, ...                       the words of one instruction
    ... ! "text"                        after an instruction: the operator it came from
    ... ? "text"                        after that: why it is this instruction
    c[N] = LITERAL                      a constant: tensor, shape(...), dtype(...), string, integer or float
    table @A, @B, ...                   puts functions into the table in this order; other names follow in order of
                                        first mention
    scope c[N] = "text"  ·  signature @F {json}  ·  meta "key" = "value"

Arguments of a call: registers, integers (immediates; constants when they need more than 56 bits), c[N], @F or f[N],
word(W) for a raw word, and literals, which become constants, equal ones the same, numbered in order of first mention
among the numbers that no `c[N] =` takes. Tensor data is a list of numbers (of a type
that numpy lacks: its bits) or base64. Names other than letters, digits and _.$:/- are written in double quotes:
@"two words".
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vmcore.errors import FormatError
from vmcore.isa import (
    MAX_ARGS,
    VM_REGISTER,
    VOID_REGISTER,
    ArgKind,
    Opcode,
    format_instruction,
    instruction_words,
    pack_arg,
    register_name,
    unpack_arg,
)
from vmcore.types import BitsArray, DataType, Shape, tensor_dtype

from .executable import (
    PACKED_FUNC,
    PACKED_NUM_ARGS,
    VM_FUNC,
    VMTIR_FUNC,
    Constant,
    DebugInfo,
    FunctionInfo,
    Signature,
    VMExecutable,
    constant_key,
    tensor_numpy_dtype,
)

_CALL, _RET, _GOTO, _IF = (int(op) for op in (Opcode.OP_CALL, Opcode.OP_RET, Opcode.OP_GOTO, Opcode.OP_IF))
_REGISTER, _IMMEDIATE, _CONSTANT, _FUNCTION = (
    int(kind) for kind in (ArgKind.ARG_REGISTER, ArgKind.ARG_IMMEDIATE, ArgKind.ARG_CONSTANT, ArgKind.ARG_FUNCTION)
)
_IMMEDIATE_LIMIT = 1 << 55  # immediates of the assembler are all that 56 bits hold
_MAX_LISTED = 16  # tensors of up to so many elements are printed as numbers


# ---- what both printers need: the words of each instruction


def instructions(executable: VMExecutable) -> list[list[int]]:
    """The words of every instruction.

    Raises
    ------
    FormatError
        If the offsets do not cut the words into consecutive pieces.
    """
    offsets = [*executable.instr_offset.tolist(), len(executable.instr_data)]
    if len(offsets) == 1 and offsets[0] == 0:
        return []
    if offsets[0] != 0 or any(b <= a for a, b in zip(offsets, offsets[1:], strict=False)):
        raise FormatError("the instruction offsets do not cut the code into consecutive instructions")
    data = executable.instr_data.tolist()
    return [data[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]


def instruction_text(executable: VMExecutable, pc: int) -> str:
    """One instruction in a line, for messages; never fails on a malformed one."""
    if not 0 <= pc < len(executable.instr_offset):
        return f"no instruction {pc}"
    names = [info.name for info in executable.functions]
    return format_instruction(executable.instr_data, int(executable.instr_offset[pc]), names)


def _is_whole(words: list[int]) -> bool:
    return instruction_words(np.array(words, dtype=np.int64), 0) == len(words)


# ---- TVM's text


def tvm_text(executable: VMExecutable) -> str:
    """The program in the layout of TVM's `VMExecutable.as_text`."""
    code = instructions(executable)
    names = [info.name for info in executable.functions]

    def name(index: int) -> str:
        return names[index] if 0 <= index < len(names) else f"#{index}"

    def arg(word: int) -> str:
        kind, value = unpack_arg(word)
        if kind == _REGISTER:
            return register_name(value)
        if kind == _IMMEDIATE:
            return f"i{value}"
        return f"c[{value}]" if kind == _CONSTANT else f"f[{name(value)}]"

    out = []
    for info in executable.functions:
        if info.kind == PACKED_FUNC:
            out.append(f"@{info.name} packed_func;\n\n")
            continue
        if info.kind != VM_FUNC:
            out.append(f"@{info.name} num_inputs={info.num_args} vm_tir_func;\n\n")
            continue
        out.append(f"@{info.name}:\n")
        for words in code[max(info.start_instr, 0) : max(info.end_instr, 0)]:
            if not _is_whole(words):
                raise FormatError(f"function {info.name!r} holds the malformed instruction {words[:8]}")
            if words[0] == _CALL:
                args = ", ".join(map(arg, words[4:]))
                out.append(f"  {'call':6}{name(words[2]):16} in: {args:12} dst: {register_name(words[1])}\n")
            elif words[0] == _RET:
                out.append(f"  {'ret':6}{register_name(words[1])}\n")
            elif words[0] == _GOTO:
                out.append(f"  {'goto':6}{words[1]}\n")
            else:
                out.append(f"  {'If':6}{register_name(words[1])}, {words[2]}\n")
        out.append("\n")
    return "".join(out)


# ---- literals


_NAME = re.compile(r"[A-Za-z0-9_.$:/-]+\Z")
_PLAIN_PARAM = re.compile(r"(?!inf|nan|base64)[A-Za-z_][A-Za-z0-9_.$/-]*\Z")


def _quoted(text: str) -> str:
    return json.dumps(text)


def _function_text(name: str) -> str:
    return "@" + (name if _NAME.match(name) else _quoted(name))


def _param_text(name: str) -> str:
    return name if _PLAIN_PARAM.match(name) else _quoted(name)


def _dtype_text(dtype: DataType) -> str:
    """A name that `DataType` understands, or dtype(code, bits, lanes)."""
    try:
        if DataType(str(dtype)) == dtype:
            return str(dtype)
    except ValueError:
        pass
    return f"dtype({dtype.code}, {dtype.bits}, {dtype.lanes})"


def _float_text(value: float) -> str:
    if value != value and struct.pack("<d", value) != struct.pack("<d", float("nan")):
        return f"float({struct.unpack('<Q', struct.pack('<d', value))[0]:#018x})"
    return repr(value)


def _tensor_text(array: np.ndarray) -> str:
    head = f"tensor {_dtype_text(tensor_dtype(array))} ({', '.join(map(str, array.shape))})"
    if array.size <= _MAX_LISTED and array.dtype.kind in "biuf" and not isinstance(array, BitsArray):
        numbers = [_float_text(float(v)) if array.dtype.kind == "f" else str(int(v)) for v in array.reshape(-1)]
        text = f"[{', '.join(numbers)}]"
        # A decimal or a NaN may not survive the way through float64, and a bool may be neither 0 nor 1.
        if "float(" not in text and _listed(text, array.dtype) == array.tobytes():
            return f"{head} {text}"
    return f"{head} base64 {base64.b64encode(array.tobytes()).decode()}"


def _listed(text: str, dtype: np.dtype) -> bytes:
    values = [float(v) if dtype.kind == "f" else int(v) for v in text[1:-1].split(", ") if v]
    with np.errstate(over="ignore"):
        return np.array(values, dtype=np.float64 if dtype.kind == "f" else object).astype(dtype).tobytes()


def _constant_text(value: Constant) -> str:
    if isinstance(value, np.ndarray):
        return _tensor_text(value)
    if isinstance(value, Shape):
        return f"shape({', '.join(map(str, value))})"
    if isinstance(value, DataType):
        text = _dtype_text(value)
        return text if text.startswith("dtype(") else f"dtype({text})"
    if isinstance(value, str):
        return _quoted(value)
    return _float_text(value) if isinstance(value, float) else str(value)


# ---- disassembler


class _Disassembler:
    def __init__(self, executable: VMExecutable) -> None:
        self.executable = executable
        self.code = instructions(executable)
        self.names = [info.name for info in executable.functions]
        self.inline = self._inline_constants()

    def _bodies(self) -> list[FunctionInfo]:
        """The bytecode functions in the order of their code, which they must cover without gaps."""
        functions = self.executable.functions
        if len(set(self.names)) != len(self.names) or "" in self.names:
            raise FormatError("cannot be written as text: function names are not unique and non-empty")
        at = 0
        bodies = [info for info in functions if info.kind == VM_FUNC]
        bodies.sort(key=lambda info: (info.start_instr, info.end_instr))
        for info in bodies:
            if info.start_instr != at or info.end_instr < at:
                raise FormatError(
                    f"cannot be written as text: function {info.name!r} does not start at instruction {at}"
                )
            at = info.end_instr
        if at != len(self.code):
            raise FormatError(f"cannot be written as text: instructions from {at} on belong to no function")
        for info in functions:
            others = (info.start_instr, info.end_instr)
            packed = (info.num_args, info.register_file_size, info.param_names)
            if info.kind not in (PACKED_FUNC, VM_FUNC, VMTIR_FUNC):
                raise FormatError(f"cannot be written as text: function {info.name!r} has kind {info.kind}")
            if (info.kind != VM_FUNC and others != (0, 0)) or (
                info.kind == PACKED_FUNC and packed != (PACKED_NUM_ARGS, 0, [])
            ):
                raise FormatError(f"cannot be written as text: the table entry of {info.name!r} has stray fields")
        return bodies

    def _constant_uses(self) -> Iterator[int]:
        for words in self.code:
            if words[0] == _CALL and _is_whole(words):
                for word in words[4:]:
                    kind, value = unpack_arg(word)
                    if kind == _CONSTANT:
                        yield value

    def _inline_constants(self) -> set[int]:
        """Constants printed where they are used: all that are no tensors, if the assembler would number them alike."""
        constants = self.executable.constants

        def can(index: int) -> bool:
            value = constants[index]
            small = isinstance(value, int) and -_IMMEDIATE_LIMIT <= value < _IMMEDIATE_LIMIT
            return not isinstance(value, np.ndarray) and not small

        used = list(dict.fromkeys(i for i in self._constant_uses() if 0 <= i < len(constants)))
        inline = [i for i in used if can(i)]
        explicit = set(range(len(constants))) - set(inline)
        free = (i for i in range(len(constants)) if i not in explicit)
        seen = {constant_key(constants[i]) for i in explicit}
        for index in inline:
            key = constant_key(constants[index])
            if key in seen or next(free) != index:
                return set()
            seen.add(key)
        return set(inline)

    def _arg(self, word: int) -> str:
        kind, value = unpack_arg(word)
        if kind == _REGISTER:
            return register_name(value)
        if kind == _IMMEDIATE:
            return str(value)
        if kind == _CONSTANT:
            return _constant_text(self.executable.constants[value]) if value in self.inline else f"c[{value}]"
        if kind == _FUNCTION:
            return self._function(value)
        return f"word({word})"

    def _function(self, index: int) -> str:
        return _function_text(self.names[index]) if 0 <= index < len(self.names) else f"f[{index}]"

    def _header(self, keyword: str, info: FunctionInfo) -> str:
        names = info.param_names
        if 0 <= info.num_args <= MAX_ARGS and len(names) in (0, info.num_args):
            params = [f"%{i} {_param_text(names[i])}" if names else f"%{i}" for i in range(info.num_args)]
            return f"{keyword} {_function_text(info.name)}({', '.join(params)}) regs={info.register_file_size}"
        texts = "" if not names else f" params=[{', '.join(map(_quoted, names))}]"
        return f"{keyword} {_function_text(info.name)} args={info.num_args}{texts} regs={info.register_file_size}"

    def _body(self, info: FunctionInfo) -> Iterator[str]:
        start, end = info.start_instr, info.end_instr
        targets: dict[int, int] = {}
        for pc in range(start, end):
            words = self.code[pc]
            if words[0] in (_GOTO, _IF) and _is_whole(words) and start <= pc + words[-1] < end:
                targets[pc] = pc + words[-1]
        labels = set(targets.values())
        for pc in range(start, end):
            if pc in labels:
                yield f"L{pc}:"
            source, note = self.executable.debug[pc], self.executable.notes[pc]
            tail = "" if source is None else f"  ! {_quoted(source)}"
            if note is not None:
                tail += f"  ? {_quoted(note)}"
            yield "  " + self._instruction(pc, targets) + tail

    def _instruction(self, pc: int, targets: dict[int, int]) -> str:
        words = self.code[pc]
        if not _is_whole(words):
            return f"{'raw':5} {', '.join(map(str, words))}"
        if words[0] == _RET:
            return f"{'ret':5} {register_name(words[1])}"
        if words[0] == _CALL:
            result = "" if words[1] == VOID_REGISTER else f" -> {register_name(words[1])}"
            return f"{'call':5} {self._function(words[2])} ({', '.join(map(self._arg, words[4:]))}){result}"
        target = f"L{targets[pc]}" if pc in targets else f"{words[-1]:+d}"
        return f"{'goto':5} {target}" if words[0] == _GOTO else f"{'if':5} {register_name(words[1])}, {target}"

    def _mentions(self, bodies: list[FunctionInfo]) -> list[str]:
        """Function names in the order in which the assembler meets them in what follows the table statement."""
        order: dict[str, None] = {}
        for info in bodies:
            order[info.name] = None
            for words in self.code[info.start_instr : info.end_instr]:
                if words[0] != _CALL or not _is_whole(words):
                    continue
                indices = [words[2], *(unpack_arg(w)[1] for w in words[4:] if unpack_arg(w)[0] == _FUNCTION)]
                order.update((self.names[i], None) for i in indices if 0 <= i < len(self.names))
        order.update((info.name, None) for info in self.executable.functions if info.kind == VMTIR_FUNC)
        return list(order)

    def text(self) -> str:
        executable, constants = self.executable, self.executable.constants
        bodies = self._bodies()
        sections: list[list[str]] = []
        if self._mentions(bodies) != self.names:
            sections.append([f"table {', '.join(map(_function_text, self.names))}"])
        sections += [[self._header("func", info), *self._body(info)] for info in bodies]
        sections.append([self._header("native", f) for f in executable.functions if f.kind == VMTIR_FUNC])
        explicit = [i for i in range(len(constants)) if i not in self.inline]
        sections.append([f"c[{i}] = {_constant_text(constants[i])}" for i in explicit])
        sections.append([f"scope c[{i}] = {_quoted(scope)}" for i, scope in executable.memory_scopes.items()])
        sections.append(
            [f"signature {_function_text(n)} {json.dumps(s.to_json())}" for n, s in executable.signatures.items()]
        )
        sections.append([f"meta {_quoted(key)} = {_quoted(value)}" for key, value in executable.metadata.items()])
        return "\n".join("".join(f"{line}\n" for line in lines) for lines in sections if lines)


def disassemble(executable: VMExecutable) -> str:
    """The executable as assembler text.

    Raises
    ------
    FormatError
        If the executable has no text: words that are no sequence of instructions, instructions outside of functions,
        names that are not unique.
    """
    return _Disassembler(executable).text()


# ---- assembler


_TOKEN = re.compile(
    r"""[ \t\r]*(?:
      (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<base64>base64[ \t]+[A-Za-z0-9+/=]*)
    | (?P<register>%(?:-?\d+|void|vm)(?!\w))
    | (?P<function>@[A-Za-z0-9_.$:/-]+|@(?="))
    | (?P<arrow>->)
    | (?P<number>[+-]?(?:0x[0-9a-fA-F]+|(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?|inf(?!\w)|nan(?!\w)))
    | (?P<word>[A-Za-z_][A-Za-z0-9_.$:/-]*)
    | (?P<punct>[(),=\[\]!?{}:])
    | (?P<comment>;.*)
    )""",
    re.VERBOSE,
)
_END = ("end", "")


class _Line:
    """The tokens of one line with a position."""

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        self.text = text
        self.ends: list[int] = []
        self.tokens: list[tuple[str, str]] = []
        self.at = 0
        position, length = 0, len(text.rstrip())
        while position < length:
            match = _TOKEN.match(text, position)
            if match is None or match.lastgroup is None:
                raise self.fail(f"{text[position:].strip()[:40]!r} is no token")
            if match.lastgroup == "comment":
                break
            token = match[match.lastgroup]
            if match.lastgroup == "word" and token.endswith(":"):  # a label; elsewhere ':' may be part of a name
                token = token[:-1]
                self.tokens.append(("word", token))
                self.ends.append(match.end() - 1)
                position = match.end() - 1
                continue
            self.tokens.append((match.lastgroup, token))
            self.ends.append(match.end())
            position = match.end()
            if token == "signature" and len(self.tokens) == 1:  # JSON follows the function name
                position = self._signature(position)

    def _signature(self, position: int) -> int:
        match = _TOKEN.match(self.text, position)
        if match is None or match.lastgroup != "function":
            raise self.fail("signature needs a function name")
        self.tokens.append(("function", match["function"]))
        position = match.end()
        if match["function"] == "@":
            match = _TOKEN.match(self.text, position)
            if match is None or match.lastgroup != "string":
                raise self.fail("signature needs a function name")
            self.tokens.append(("string", match["string"]))
            position = match.end()
        self.tokens.append(("json", self.text[position:].strip()))
        self.ends += [position] * (len(self.tokens) - len(self.ends))
        return len(self.text)

    def fail(self, message: str) -> FormatError:
        return FormatError(f"asm, line {self.number}: {message}")

    @property
    def kind(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else "end"

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else _END

    def next(self, kind: str | None = None, text: str | None = None) -> str:
        found = self.peek()
        if (kind is not None and found[0] != kind) or (text is not None and found[1] != text):
            raise self.fail(f"expected {text or kind}, found {found[1][:40] or 'the end of the line'!r}")
        self.at += 1
        return found[1]

    def accept(self, text: str) -> bool:
        if self.peek()[1] == text and self.kind in ("punct", "arrow", "word"):
            self.at += 1
            return True
        return False

    def integer(self) -> int:
        text = self.next("number")
        try:
            return int(text, 0)
        except ValueError:
            raise self.fail(f"{text[:40]} is no integer") from None

    def string(self) -> str:
        text = self.next("string")
        try:
            value = json.loads(text)
            value.encode("utf-8")
        except ValueError:
            raise self.fail(f"{text[:40]} is no valid string") from None
        return value

    def function(self) -> str:
        name = self.next("function")[1:]
        return name if name else self.string()

    def register(self) -> int:
        text = self.next("register")
        if text == "%void":
            return VOID_REGISTER
        if text == "%vm":
            return VM_REGISTER
        return self.int64(text[1:])

    def int64(self, text: str | int) -> int:
        try:
            value = int(text)
        except ValueError:
            raise self.fail(f"{str(text)[:40]} is no integer") from None
        if not -(2**63) <= value < 2**63:
            raise self.fail(f"{value} does not fit in 64 bits")
        return value

    def items(self, close: str, item: Callable[[], Any]) -> list[Any]:
        """A list of items, separated by commas, whose opening bracket was read."""
        values: list[Any] = []
        while not self.accept(close):
            if values:
                self.next("punct", ",")
            values.append(item())
        return values


class _Assembler:
    def __init__(self) -> None:
        self.functions: list[FunctionInfo] = []
        self.index: dict[str, int] = {}
        self.explicit: dict[int, Constant] = {}
        self.literals: list[Constant] = []  # in order of first mention, not yet numbered
        self.literal_index: dict[tuple[Any, ...], int] = {}
        self.uses: list[tuple[list[int], int, int]] = []  # (words, position, index into literals)
        self.code: list[list[int]] = []
        self.sources: list[str | None] = []
        self.notes: list[str | None] = []
        self.scopes: dict[int, str] = {}
        self.signatures: dict[str, Signature] = {}
        self.metadata: dict[str, str] = {}
        self.current: FunctionInfo | None = None
        self.labels: dict[str, int] = {}
        self.jumps: list[tuple[int, int, str, _Line]] = []
        self.count_registers = False

    # ---- functions

    def mention(self, name: str) -> int:
        if name not in self.index:
            self.index[name] = len(self.functions)
            self.functions.append(FunctionInfo(PACKED_FUNC, name))
        return self.index[name]

    def define(self, line: _Line, kind: int) -> None:
        self.close()
        name = line.function()
        if not name:
            raise line.fail("a function needs a name")
        info = self.functions[self.mention(name)]
        if info.kind != PACKED_FUNC:
            raise line.fail(f"function {name!r} is defined twice")
        info.kind, info.num_args = kind, 0
        if line.accept("("):
            params = line.items(")", lambda: self.param(line))
            if [register for register, _ in params] != list(range(len(params))):
                raise line.fail("parameters are registers %0, %1, ... in order")
            names = [param for _, param in params if param is not None]
            if names and len(names) != len(params):
                raise line.fail(f"{len(names)} of {len(params)} parameters have names; name all or none")
            info.num_args, info.param_names = len(params), names
        self.count_registers = True
        while line.kind == "word":
            key = line.next("word")
            line.next("punct", "=")
            if key == "regs":
                info.register_file_size = line.int64(line.integer())
                self.count_registers = False
            elif key == "args":
                info.num_args = line.int64(line.integer())
            elif key == "params":
                line.next("punct", "[")
                info.param_names = line.items("]", line.string)
            else:
                raise line.fail(f"unknown property {key!r}; there are regs, args and params")
        if kind == VM_FUNC:
            info.start_instr = len(self.code)
            self.current = info
        elif self.count_registers:
            info.register_file_size = info.num_args + 1

    def param(self, line: _Line) -> tuple[int, str | None]:
        register = line.register()
        if line.kind == "word":
            return register, line.next("word")
        return register, line.string() if line.kind == "string" else None

    def close(self) -> None:
        """Ends the body of the current function."""
        info = self.current
        if info is None:
            return
        info.end_instr = len(self.code)
        for pc, position, name, line in self.jumps:
            if name not in self.labels:
                raise line.fail(f"label {name!r} is not in function {info.name!r}")
            self.code[pc][position] = self.labels[name] - pc
        if self.count_registers:
            used = [info.num_args - 1, -1]
            for words in self.code[info.start_instr :]:
                if words[0] == _CALL and len(words) >= 4:
                    used.append(words[1])
                    used += [value for kind, value in map(unpack_arg, words[4:]) if kind == _REGISTER]
                elif words[0] in (_RET, _IF) and len(words) >= 2:
                    used.append(words[1])
            info.register_file_size = max(r for r in used if r < VOID_REGISTER) + 1
        self.jumps.clear()
        self.labels.clear()
        self.current = None

    # ---- literals

    def dtype(self, line: _Line) -> DataType:
        """What follows `tensor`, or stands inside of dtype(...)."""
        if line.kind == "number":
            triple = [line.integer()]
            for _ in range(2):
                line.next("punct", ",")
                triple.append(line.integer())
            if not (0 <= triple[0] < 256 and 0 <= triple[1] < 256 and 0 <= triple[2] < 65536):
                raise line.fail(f"dtype {tuple(triple)}: code and bits are 0..255, lanes 0..65535")
            return DataType.from_triple(*triple)
        name = line.next("word")
        if name == "dtype" and line.accept("("):
            dtype = self.dtype(line)
            line.next("punct", ")")
            return dtype
        try:
            return DataType(name)
        except ValueError:
            raise line.fail(f"{name[:40]!r} is not a data type") from None

    def tensor(self, line: _Line) -> np.ndarray:
        element_type = self.dtype(line)
        dtype = tensor_numpy_dtype(element_type)
        if dtype is None:
            raise line.fail(f"a tensor of {element_type} cannot be a constant")
        line.next("punct", "(")
        shape = tuple(line.items(")", line.integer))
        if line.kind == "base64":
            try:
                raw = base64.b64decode(line.next()[len("base64") :].strip(), validate=True)
            except ValueError:
                raise line.fail("the tensor data is not base64") from None
            if len(raw) % dtype.itemsize:
                raise line.fail(f"{len(raw)} bytes are no whole number of {element_type}")
            data = np.frombuffer(raw, dtype=dtype)
        else:
            line.next("punct", "[")
            data = self.numbers(line, dtype)
        extent = count = 1
        for dim in shape:
            extent, count = extent * max(dim, 1), count * dim
        if min(shape, default=0) < 0 or extent >= 2**60 or count != data.size:
            raise line.fail(f"a tensor of shape {shape} cannot have {data.size} elements")
        try:
            array = data.reshape(shape).copy()
        except ValueError:
            raise line.fail(f"a tensor of shape {shape} is too large to address") from None
        return array if DataType(dtype) == element_type else BitsArray.wrap(array, element_type)

    def numbers(self, line: _Line, dtype: np.dtype) -> np.ndarray:
        texts = line.items("]", lambda: line.next("number"))
        try:
            if dtype.kind in "fc":
                with np.errstate(over="ignore"):
                    return np.array([float(text) for text in texts], dtype=np.float64).astype(dtype)
            values = [int(text, 0) for text in texts]
            return np.array(values, dtype=object).astype(dtype) if dtype.kind == "b" else np.array(values, dtype=dtype)
        except (ValueError, OverflowError):
            raise line.fail(f"a number of the tensor is no {dtype}") from None

    def literal(self, line: _Line) -> Constant | None:
        """A constant, or None if the next token starts none."""
        kind, text = line.peek()
        if kind == "string":
            return line.string()
        if kind == "number":
            if re.match(r"[+-]?(0[xX]|\d+\Z)", text):
                return line.int64(line.integer())
            line.next()
            return float(text)
        if kind != "word" or text not in ("tensor", "shape", "dtype", "float"):
            return None
        line.next()
        if text == "tensor":
            return self.tensor(line)
        line.next("punct", "(")
        if text == "shape":
            return Shape(line.items(")", lambda: line.int64(line.integer())))
        value: Constant
        if text == "dtype":
            value = self.dtype(line)
        else:
            bits = line.integer()
            if not 0 <= bits < 2**64:
                raise line.fail(f"float({bits}): not 64 bits")
            value = struct.unpack("<d", struct.pack("<Q", bits))[0]
        line.next("punct", ")")
        return value

    # ---- statements

    def subscript(self, line: _Line) -> int:
        line.next("punct", "[")
        index = line.integer()
        line.next("punct", "]")
        return index

    def argument(self, line: _Line, words: list[int]) -> None:
        """Appends the word of one call argument."""
        kind, text = line.peek()
        try:
            if kind == "register":
                words.append(pack_arg(_REGISTER, line.register()))
            elif kind == "function":
                words.append(pack_arg(_FUNCTION, self.mention(line.function())))
            elif kind == "word" and text in ("c", "f"):
                line.next()
                words.append(pack_arg(_CONSTANT if text == "c" else _FUNCTION, self.subscript(line)))
            elif kind == "word" and text == "word":
                line.next()
                line.next("punct", "(")
                words.append(line.int64(line.integer()))
                line.next("punct", ")")
            else:
                value = self.literal(line)
                if value is None:
                    raise line.fail(f"{text[:40]!r} is no argument")
                if isinstance(value, int) and -_IMMEDIATE_LIMIT <= value < _IMMEDIATE_LIMIT:
                    words.append(pack_arg(_IMMEDIATE, value))
                    return
                key = constant_key(value)
                index = self.literal_index.setdefault(key, len(self.literals))
                if index == len(self.literals):
                    self.literals.append(value)
                self.uses.append((words, len(words), index))
                words.append(0)
        except (ValueError, OverflowError) as error:
            raise line.fail(str(error)) from None

    def jump(self, line: _Line, words: list[int]) -> None:
        if line.kind == "word":
            self.jumps.append((len(self.code), len(words), line.next("word"), line))
            words.append(0)
        else:
            words.append(line.int64(line.integer()))

    def instruction(self, line: _Line, name: str) -> None:
        if self.current is None:
            raise line.fail("an instruction outside of a function")
        words: list[int]
        if name == "call":
            words = [_CALL, VOID_REGISTER, 0, 0]
            if line.kind == "function":
                words[2] = self.mention(line.function())
            else:
                line.next("word", "f")
                words[2] = line.int64(self.subscript(line))
            line.next("punct", "(")
            line.items(")", lambda: self.argument(line, words))
            words[3] = len(words) - 4
            if line.accept("->"):
                words[1] = line.register()
        elif name == "ret":
            words = [_RET, line.register()]
        elif name == "goto":
            words = [_GOTO]
            self.jump(line, words)
        elif name == "if":
            words = [_IF, line.register()]
            line.next("punct", ",")
            self.jump(line, words)
        else:
            words = [line.int64(line.integer())]
            while line.accept(","):
                words.append(line.int64(line.integer()))
        self.code.append(words)
        self.sources.append(line.string() if line.accept("!") else None)
        self.notes.append(line.string() if line.accept("?") else None)

    def statement(self, line: _Line) -> None:
        name = line.next("word")
        if name in ("call", "ret", "goto", "if", "raw") and not line.accept(":"):
            self.instruction(line, name)
        elif line.tokens[line.at - 1][1] == ":" or line.accept(":"):
            if self.current is None:
                raise line.fail("a label outside of a function")
            if name in self.labels:
                raise line.fail(f"label {name!r} is defined twice in function {self.current.name!r}")
            self.labels[name] = len(self.code)
        elif name in ("func", "native"):
            self.define(line, VM_FUNC if name == "func" else VMTIR_FUNC)
        elif name == "table":
            self.mention(line.function())
            while line.accept(","):
                self.mention(line.function())
        elif name == "c":
            index = self.subscript(line)
            line.next("punct", "=")
            value = self.literal(line)
            if value is None:
                raise line.fail(f"{line.peek()[1][:40]!r} is no constant")
            if index in self.explicit:
                raise line.fail(f"constant c[{index}] is defined twice")
            self.explicit[index] = value
        elif name == "scope":
            line.next("word", "c")
            index = line.int64(self.subscript(line))
            line.next("punct", "=")
            self.scopes[index] = line.string()
        elif name == "meta":
            key = line.string()
            line.next("punct", "=")
            self.metadata[key] = line.string()
        elif name == "signature":
            function = line.function()
            text = line.next("json")
            try:
                self.signatures[function] = Signature.from_json(json.loads(text))
            except (ValueError, RecursionError) as error:
                raise line.fail(f"the signature is not JSON: {error}") from None
        else:
            raise line.fail(f"unknown statement {name[:40]!r}")
        if line.kind != "end":
            raise line.fail(f"{line.peek()[1][:40]!r} is left over")

    def pool(self) -> list[Constant]:
        """Numbers the literals and puts their numbers into the code."""
        known = {constant_key(value): index for index, value in sorted(self.explicit.items(), reverse=True)}
        free = 0
        numbers = []
        for value in self.literals:
            index = known.get(constant_key(value), -1)
            if index < 0:
                while free in self.explicit:
                    free += 1
                index = free
                self.explicit[index] = value
            numbers.append(index)
        for words, position, literal in self.uses:
            words[position] = pack_arg(_CONSTANT, numbers[literal])
        n = len(self.explicit)
        missing = next((i for i in range(n) if i not in self.explicit), None)
        if missing is not None:
            raise FormatError(f"asm: there are {n} constants, but c[{missing}] is not among them")
        return [self.explicit[i] for i in range(n)]

    def finish(self) -> VMExecutable:
        self.close()
        constants = self.pool()
        sizes = [len(words) for words in self.code]
        return VMExecutable(
            self.functions,
            constants,
            np.cumsum([0, *sizes[:-1]], dtype=np.int64) if sizes else np.zeros(0, dtype=np.int64),
            np.array([word for words in self.code for word in words], dtype=np.int64),
            self.scopes,
            DebugInfo(self.sources),
            self.signatures,
            self.metadata,
            DebugInfo(self.notes),
        )


def assemble(text: str) -> VMExecutable:
    """The executable that `text` describes; it is not verified.

    Raises
    ------
    FormatError
        If the text does not follow the grammar; names the line.
    """
    assembler = _Assembler()
    for number, content in enumerate(text.split("\n"), 1):
        line = _Line(number, content)
        if line.tokens:
            assembler.statement(line)
    return assembler.finish()


# ---- Python text


def _python_constant(value: Constant) -> str:
    if isinstance(value, np.ndarray):
        data = f"np.frombuffer(bytes.fromhex({value.tobytes().hex()!r}), {value.dtype.name!r}).reshape({value.shape})"
        if isinstance(value, BitsArray):
            t = tensor_dtype(value)
            return f"BitsArray.wrap({data}, DataType.from_triple({t.code}, {t.bits}, {t.lanes}))"
        return data
    if isinstance(value, Shape):
        return f"Shape({tuple(value)})"
    if isinstance(value, DataType):
        return f"DataType.from_triple({value.code}, {value.bits}, {value.lanes})"
    if isinstance(value, float) and not abs(value) < float("inf"):
        return f"struct.unpack('<d', bytes.fromhex({struct.pack('<d', value).hex()!r}))[0]"
    return repr(value)


def python_text(executable: VMExecutable) -> str:
    """A Python program that rebuilds a verified executable with `ExecBuilder` and calls it `executable`.

    Raises
    ------
    VerifyError
        If the executable breaks a rule.
    """
    executable.verify()
    names = [info.name for info in executable.functions]
    code = instructions(executable)
    out = [
        "import struct",
        "",
        "import numpy as np",
        "",
        "from pyvm.exec_builder import ExecBuilder, Operand",
        "from pyvm.executable import Signature",
        "from vmcore.types import BitsArray, DataType, Shape",
        "",
        "b = ExecBuilder()",
    ]
    out += [f"b.declare_function({info.name!r}, {info.kind})" for info in executable.functions]
    seen: set[tuple[Any, ...]] = set()
    for index, value in enumerate(executable.constants):
        share = ", share=False" if constant_key(value) in seen else ""
        seen.add(constant_key(value))
        out.append(f"c{index} = b.convert_constant({_python_constant(value)}{share})")

    def register(index: int) -> str:
        return {VOID_REGISTER: "b.void_arg()", VM_REGISTER: "b.vm_state()"}.get(index, f"b.r({index})")

    def arg(word: int) -> str:
        kind, value = unpack_arg(word)
        if kind == _REGISTER:
            return register(value)
        if kind == _IMMEDIATE:
            return f"b.imm({value})" if value > -_IMMEDIATE_LIMIT else f"Operand({word})"
        return f"c{value}" if kind == _CONSTANT else f"b.f({names[value]!r})"

    defined = [info for info in executable.functions if info.kind != PACKED_FUNC]
    for info in sorted(defined, key=lambda info: info.start_instr):
        fields = f"{info.name!r}, num_inputs={info.num_args}"
        if info.param_names:
            fields += f", param_names={info.param_names!r}"
        fields += f", kind={info.kind}, init_register_size={info.register_file_size}"
        out.append(f"with b.function({fields}):")
        start, end = info.start_instr, info.end_instr
        targets = {pc: pc + code[pc][-1] for pc in range(start, end) if code[pc][0] in (_GOTO, _IF)}
        labels = sorted(set(targets.values()))
        out += [f"    l{target} = b.label()" for target in labels]
        for pc in range(start, end):
            words = code[pc]
            if pc in labels:
                out.append(f"    b.place(l{pc})")
            source = executable.debug[pc]
            tail = "" if source is None else f", source={source!r}"
            if executable.notes[pc] is not None:
                tail += f", note={executable.notes[pc]!r}"
            if words[0] == _CALL:
                dst = "" if words[1] == VOID_REGISTER else f", dst={register(words[1])}"
                args = ", ".join(map(arg, words[4:]))
                out.append(f"    b.emit_call({names[words[2]]!r}, [{args}]{dst}{tail})")
            elif words[0] == _RET:
                out.append(f"    b.emit_ret({register(words[1])}{tail})")
            elif words[0] == _GOTO:
                out.append(f"    b.emit_goto(l{targets[pc]}{tail})")
            else:
                out.append(f"    b.emit_if({register(words[1])}, l{targets[pc]}{tail})")
        if start == end:
            out.append("    pass")
    for name, signature in executable.signatures.items():
        out.append(f"b.set_signature({name!r}, Signature.from_json({signature.to_json()!r}))")
    out.append("executable = b.get(formalize=False)")
    if executable.memory_scopes:
        out.append(f"executable.memory_scopes.update({executable.memory_scopes!r})")
    if executable.metadata:
        out.append(f"executable.metadata.update({executable.metadata!r})")
    return "\n".join(out) + "\n"
