"""The assembler: an executable from its text."""

from __future__ import annotations

import base64
import json
import re
import struct
from typing import Any

import numpy as np

from vmcore.errors import ArgumentTypeError, FormatError
from vmcore.isa import VOID_REGISTER, pack_arg, unpack_arg
from vmcore.types import BitsArray, DataType, Shape, stored_dtype

from ..constants import Constant, constant_key, is_constant
from ..executable import PACKED_FUNC, VM_FUNC, VMTIR_FUNC, DebugInfo, FunctionInfo, VMExecutable
from ..signature import Signature
from .line import Line
from .words import CALL, CONSTANT, FUNCTION, GOTO, IF, IMMEDIATE, IMMEDIATE_LIMIT, REGISTER, RET


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
        self.trailing: list[int] = []
        self.offsets: list[int] | None = None
        self.all_sources: list[str | None] | None = None
        self.all_notes: list[str | None] | None = None
        self.current: FunctionInfo | None = None
        self.defined: set[int] = set()
        self.labels: dict[str, int] = {}
        self.jumps: list[tuple[int, int, str, Line]] = []
        self.count_registers = False

    # ---- functions

    def mention(self, name: str) -> int:
        if name not in self.index:
            self.index[name] = len(self.functions)
            self.functions.append(FunctionInfo(PACKED_FUNC, name))
        return self.index[name]

    def define(self, line: Line, kind: int) -> None:
        self.close()
        name = line.function()
        if not name:
            raise line.fail("a function needs a name")
        index = self.mention(name)
        info = self.functions[index]
        if index in self.defined:
            raise line.fail(f"function {name!r} is defined twice")
        self.defined.add(index)
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
                info.param_names = line.items("]", lambda: line.string(any_text=True))
            else:
                raise line.fail(f"unknown property {key!r}; there are regs, args and params")
        if kind == VM_FUNC:
            info.start_instr = len(self.code)
            self.current = info
        elif self.count_registers:
            info.register_file_size = info.num_args + 1

    def entry(self, line: Line) -> None:
        """A row of the table: the one that was mentioned under this name, or, if that is defined, one more."""
        self.close()
        name = line.function()
        index = self.mention(name)
        if index in self.defined:
            index = len(self.functions)
            self.functions.append(FunctionInfo(PACKED_FUNC, name))
        self.defined.add(index)
        info = self.functions[index]
        fields = {
            "kind": "kind", "args": "num_args", "start": "start_instr", "end": "end_instr",
            "regs": "register_file_size",
        }  # fmt: skip
        while line.kind == "word":
            key = line.next("word")
            line.next("punct", "=")
            if key == "params":
                line.next("punct", "[")
                info.param_names = line.items("]", lambda: line.string(any_text=True))
            elif key in fields:
                setattr(info, fields[key], line.integer())
            else:
                raise line.fail(f"unknown property {key!r}; there are {', '.join(fields)} and params")

    def param(self, line: Line) -> tuple[int, str | None]:
        register = line.register()
        if line.kind == "word":
            return register, line.next("word")
        return register, line.string(any_text=True) if line.kind == "string" else None

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
                if words[0] == CALL and len(words) >= 4:
                    used.append(words[1])
                    used += [value for kind, value in map(unpack_arg, words[4:]) if kind == REGISTER]
                elif words[0] in (RET, IF) and len(words) >= 2:
                    used.append(words[1])
            info.register_file_size = max(r for r in used if r < VOID_REGISTER) + 1
        self.jumps.clear()
        self.labels.clear()
        self.current = None

    # ---- literals

    def dtype(self, line: Line) -> DataType:
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

    def tensor(self, line: Line) -> np.ndarray:
        element_type = self.dtype(line)
        dtype = stored_dtype(element_type)
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

    def numbers(self, line: Line, dtype: np.dtype) -> np.ndarray:
        texts = line.items("]", lambda: line.next("number"))
        try:
            if dtype.kind in "fc":
                with np.errstate(over="ignore"):
                    return np.array([float(text) for text in texts], dtype=np.float64).astype(dtype)
            values = [int(text, 0) for text in texts]
            return np.array(values, dtype=object).astype(dtype) if dtype.kind == "b" else np.array(values, dtype=dtype)
        except (ValueError, OverflowError):
            raise line.fail(f"a number of the tensor is no {dtype}") from None

    def literal(self, line: Line) -> Constant | None:
        """A constant, or None if the next token starts none."""
        kind, text = line.peek()
        if kind == "string":
            return line.string(any_text=True)
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

    def anything(self, line: Line, depth: int = 0) -> Any:
        """A value that no pool holds."""
        if line.accept("["):
            if depth > 50:
                raise line.fail("lists nested deeper than 50")
            return line.items("]", lambda: self.anything(line, depth + 1))
        if line.kind == "string":
            return line.string(any_text=True)
        if line.kind == "number":
            return line.integer()
        word = line.next("word")
        if word not in ("none", "true", "false"):
            raise line.fail(f"{word[:40]!r} is no value")
        return None if word == "none" else word == "true"

    def texts(self, line: Line) -> list[str | None]:
        line.next("punct", "[")
        return line.items("]", lambda: None if line.accept("none") else line.string())

    # ---- statements

    def subscript(self, line: Line) -> int:
        line.next("punct", "[")
        index = line.integer()
        line.next("punct", "]")
        return index

    def argument(self, line: Line, words: list[int]) -> None:
        """Appends the word of one call argument."""
        kind, text = line.peek()
        try:
            if kind == "register":
                words.append(pack_arg(REGISTER, line.register()))
            elif kind == "function":
                words.append(pack_arg(FUNCTION, self.mention(line.function())))
            elif kind == "word" and text in ("c", "f"):
                line.next()
                words.append(pack_arg(CONSTANT if text == "c" else FUNCTION, self.subscript(line)))
            elif kind == "word" and text == "word":
                line.next()
                line.next("punct", "(")
                words.append(line.int64(line.integer()))
                line.next("punct", ")")
            else:
                value = self.literal(line)
                if value is None:
                    raise line.fail(f"{text[:40]!r} is no argument")
                if isinstance(value, int) and -IMMEDIATE_LIMIT <= value < IMMEDIATE_LIMIT:
                    words.append(pack_arg(IMMEDIATE, value))
                    return
                key = constant_key(value)
                index = self.literal_index.setdefault(key, len(self.literals))
                if index == len(self.literals):
                    self.literals.append(value)
                self.uses.append((words, len(words), index))
                words.append(0)
        except (ValueError, OverflowError) as error:
            raise line.fail(str(error)) from None

    def jump(self, line: Line, words: list[int]) -> None:
        if line.kind == "word":
            self.jumps.append((len(self.code), len(words), line.next("word"), line))
            words.append(0)
        else:
            words.append(line.int64(line.integer()))

    def integers(self, line: Line) -> list[int]:
        """At least one, separated by commas."""
        values = [line.int64(line.integer())]
        while line.accept(","):
            values.append(line.int64(line.integer()))
        return values

    def instruction(self, line: Line, name: str) -> None:
        if self.current is None:
            raise line.fail("an instruction outside of a function")
        words: list[int]
        if name == "call":
            words = [CALL, VOID_REGISTER, 0, 0]
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
            words = [RET, line.register()]
        elif name == "goto":
            words = [GOTO]
            self.jump(line, words)
        elif name == "if":
            words = [IF, line.register()]
            line.next("punct", ",")
            self.jump(line, words)
        else:
            words = self.integers(line)
        self.code.append(words)
        self.sources.append(line.string() if line.accept("!") else None)
        self.notes.append(line.string() if line.accept("?") else None)

    def statement(self, line: Line) -> None:
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
        elif name == "entry":
            self.entry(line)
        elif name == "code":
            self.close()
            self.current = FunctionInfo(VM_FUNC, "code", start_instr=len(self.code))  # of no row of the table
            self.count_registers = False
        elif name == "words":
            self.trailing += self.integers(line)
        elif name == "offsets":
            self.offsets = (self.offsets or []) + self.integers(line)
        elif name == "debug":
            self.all_sources = self.texts(line)
        elif name == "notes":
            self.all_notes = self.texts(line)
        elif name == "table":
            self.mention(line.function())
            while line.accept(","):
                self.mention(line.function())
        elif name == "c":
            index = self.subscript(line)
            line.next("punct", "=")
            value: Any = self.anything(line) if line.accept("any") else self.literal(line)
            if value is None and line.tokens[line.at - 1][1] != "none":
                raise line.fail(f"{line.peek()[1][:40]!r} is no constant")
            if index in self.explicit:
                raise line.fail(f"constant c[{index}] is defined twice")
            self.explicit[index] = value
        elif name == "scope":
            line.next("word", "c")
            index = line.int64(self.subscript(line))
            line.next("punct", "=")
            self.scopes[index] = line.string(any_text=True)
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
        known = {
            constant_key(value): index
            for index, value in sorted(self.explicit.items(), reverse=True)
            if not isinstance(value, list)  # no constant, and not hashable
        }
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
            words[position] = pack_arg(CONSTANT, numbers[literal])
        n = len(self.explicit)
        missing = next((i for i in range(n) if i not in self.explicit), None)
        if missing is not None:
            raise FormatError(f"asm: there are {n} constants, but c[{missing}] is not among them")
        return [self.explicit[i] for i in range(n)]

    def finish(self) -> VMExecutable:
        self.close()
        constants = self.pool()
        sizes = [len(words) for words in self.code]
        offsets = np.cumsum([0, *sizes[:-1]], dtype=np.int64) if sizes else np.zeros(0, dtype=np.int64)
        if self.offsets is not None:
            offsets = np.array(self.offsets, dtype=np.int64)
        odd = {i: value for i, value in enumerate(constants) if not is_constant(value)}
        executable = VMExecutable(
            self.functions,
            [0 if i in odd else value for i, value in enumerate(constants)],
            offsets,
            np.array([word for words in (*self.code, self.trailing) for word in words], dtype=np.int64),
            self.scopes,
            DebugInfo(self.sources if self.all_sources is None else self.all_sources),
            self.signatures,
            self.metadata,
            DebugInfo(self.notes if self.all_notes is None else self.all_notes),
        )
        for index, value in odd.items():
            executable.constants[index] = value
        return executable


def assemble(text: str) -> VMExecutable:
    """The executable that `text` describes; it is not verified.

    Raises
    ------
    FormatError
        If the text does not follow the grammar; names the line.
    ArgumentTypeError
        If `text` is no str.
    """
    if not isinstance(text, str):
        raise ArgumentTypeError(f"assemble: expected the text of a program, got {type(text).__name__}")
    assembler = _Assembler()
    for number, content in enumerate(text.split("\n"), 1):
        line = Line(number, content)
        if line.tokens:
            assembler.statement(line)
    return assembler.finish()
