"""ExecBuilder: writes a VMExecutable instruction by instruction, with the names and checks of TVM's builder.

Beyond TVM's: jump targets may be labels, arguments may be plain Python values, an instruction may carry the operator it
came from, and functions may carry signatures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import numpy as np

from pyvm.checked_calls import checked_method
from vmcore import arguments
from vmcore.errors import ArgumentValueError, VerifyError
from vmcore.isa import (
    IMMEDIATE_MAX,
    MAX_ARGS,
    MAX_REGISTERS,
    PACKED_NUM_ARGS,
    VM_REGISTER,
    VOID_REGISTER,
    ArgKind,
    Opcode,
    pack_arg,
    register_name,
    unpack_arg,
)

from .constants import Constant, constant_key, normalize_constant
from .executable import PACKED_FUNC, VM_FUNC, VMTIR_FUNC, DebugInfo, FunctionInfo, VMExecutable
from .signature import Signature

_REGISTER = int(ArgKind.ARG_REGISTER)
_IMMEDIATE = int(ArgKind.ARG_IMMEDIATE)
_CONSTANT = int(ArgKind.ARG_CONSTANT)
_FUNCTION = int(ArgKind.ARG_FUNCTION)
_CALL, _RET, _GOTO, _IF = (int(op) for op in (Opcode.OP_CALL, Opcode.OP_RET, Opcode.OP_GOTO, Opcode.OP_IF))


class Operand(int):
    """An encoded Call argument: the instruction word, with `kind` and `value`."""

    __slots__ = ()

    @property
    def kind(self) -> int:
        """One of `vmcore.isa.ArgKind`."""
        return unpack_arg(self)[0]

    @property
    def value(self) -> int:
        """Register number, immediate, constant index or function index."""
        return unpack_arg(self)[1]

    def __repr__(self) -> str:
        kind, value = unpack_arg(self)
        return (register_name(value), f"imm({value})", f"c[{value}]", f"f[{value}]")[kind]


class Label:
    """A jump target; `ExecBuilder.place` puts it before the next instruction."""

    __slots__ = ("function", "name", "pc")

    def __init__(self, name: str, function: int) -> None:
        self.name = name
        self.function = function
        self.pc: int | None = None

    def __repr__(self) -> str:
        return f"Label({self.name!r})"


class ExecBuilder:
    """Builds an executable.

    Examples
    --------
    >>> b = ExecBuilder()
    >>> with b.function("main", num_inputs=1):
    ...     b.emit_call("vm.builtin.copy", [b.r(0)], dst=b.r(1))
    ...     b.emit_ret(b.r(1))
    >>> executable = b.get()
    """

    def __init__(self) -> None:
        self._functions: list[FunctionInfo] = []
        self._function_index: dict[str, int] = {}
        self._constants: list[Constant] = []
        self._constant_index: dict[tuple[Any, ...], int] = {}
        self._instructions: list[list[int]] = []  # words per instruction
        self._sources: list[str | None] = []
        self._notes: list[str | None] = []
        self._jumps: list[tuple[int, int, Label]] = []  # (pc, position of the offset in its words, target)
        self._labels: list[Label] = []
        self._current: int | None = None  # index of the function being emitted
        self._signatures: dict[str, Signature] = {}
        self._memory_scopes: dict[int, str] = {}
        self._metadata: dict[str, str] = {}

    # ---- operands

    def r(self, index: int) -> Operand:
        """A register."""
        if type(index) is not int:
            index = arguments.integer("r", "the register", index)
        if not (0 <= index < MAX_REGISTERS or index in (VOID_REGISTER, VM_REGISTER)):
            raise ArgumentValueError(f"register {index} is not in 0..{MAX_REGISTERS - 1}")
        return Operand(pack_arg(_REGISTER, index))

    def imm(self, value: int) -> Operand:
        """An immediate integer, at most 2**55 - 1 in magnitude."""
        if type(value) is not int:
            value = arguments.integer("imm", "the immediate", value)
        if not -IMMEDIATE_MAX <= value <= IMMEDIATE_MAX:
            raise ArgumentValueError(f"immediate {value} is outside of +-(2**55 - 1); use convert_constant")
        return Operand(pack_arg(_IMMEDIATE, value))

    def c(self, index: int) -> Operand:
        """A constant, by pool index; what `convert_constant` returned is taken as it is."""
        if isinstance(index, Operand):
            if index.kind != _CONSTANT:
                raise ArgumentValueError(f"c: {index!r} is not a constant")
            return index
        index = arguments.integer("c", "the index", index)
        if not 0 <= index < len(self._constants):
            raise ArgumentValueError(f"constant index {index} is not in the pool of {len(self._constants)}")
        return Operand(pack_arg(_CONSTANT, index))

    def f(self, name: str) -> Operand:
        """A function of the table as a value; declares it as a packed function if it is new."""
        return Operand(pack_arg(_FUNCTION, self.declare_function(name)))

    def void_arg(self) -> Operand:
        """The argument None."""
        return self.r(VOID_REGISTER)

    def vm_state(self) -> Operand:
        """The virtual machine itself as an argument."""
        return self.r(VM_REGISTER)

    def convert_constant(self, value: Any, *, share: bool = True) -> Operand:
        """Puts `value` into the constant pool, once per distinct value unless `share` is false."""
        constant = normalize_constant(value)
        key = constant_key(constant)
        index = self._constant_index.get(key) if share else None
        if index is None:
            index = len(self._constants)
            self._constants.append(constant)
            self._constant_index.setdefault(key, index)
        return Operand(pack_arg(_CONSTANT, index))

    @checked_method
    def set_memory_scope(self, constant: Operand, scope: str) -> None:
        """Records the memory scope of a constant."""
        self._memory_scopes[self.c(constant).value] = scope

    # ---- functions

    def declare_function(self, name: str, kind: int = PACKED_FUNC) -> int:
        """Enters `name` into the function table, which is in order of first mention; returns its index."""
        index = self._function_index.get(name) if type(name) is str else None
        if index is None:
            if not arguments.text("ExecBuilder", "the name of a function", name) or "\0" in name:
                what = "without NUL that is not empty"
                raise arguments.wrong_value("ExecBuilder", "the name of a function", f"a str {what}", name)
            if arguments.integer("declare_function", "kind", kind) not in (PACKED_FUNC, VM_FUNC, VMTIR_FUNC):
                kinds = f"{PACKED_FUNC}, {VM_FUNC} or {VMTIR_FUNC}"
                raise arguments.wrong_value("declare_function", "kind", kinds, kind)
            name = str(name)
            index = self._function_index[name] = len(self._functions)
            self._functions.append(FunctionInfo(int(kind), name))
        elif self._functions[index].num_args == PACKED_NUM_ARGS and kind != PACKED_FUNC:
            self._functions[index].kind = int(kind)
        return index

    @checked_method
    @contextmanager
    def function(
        self,
        name: str,
        num_inputs: int = 0,
        param_names: Sequence[str] | None = None,
        *,
        kind: int = VM_FUNC,
        init_register_size: int = 0,
    ) -> Iterator[None]:
        """The scope in which instructions belong to the function `name`.

        Parameters
        ----------
        num_inputs : int
            Arguments arrive in registers 0 .. num_inputs - 1.
        param_names : sequence of str, optional
            As many as inputs.
        kind : int
            VM_FUNC, or VMTIR_FUNC for a compiled function, which has no instructions here.
        init_register_size : int
            Registers of a frame at least; those that are mentioned always count.
        """
        if self._current is not None:
            outer = self._functions[self._current].name
            raise ArgumentValueError(f"function {name!r} inside {outer!r}: scopes do not nest")
        if num_inputs < 0 or num_inputs > MAX_ARGS:
            raise ArgumentValueError(f"function {name!r}: {num_inputs} inputs is not in 0..{MAX_ARGS}")
        names = list(param_names or ())
        if names and len(names) != num_inputs:
            raise ArgumentValueError(f"function {name!r}: {num_inputs} inputs but {len(names)} parameter names")
        if kind not in (VM_FUNC, VMTIR_FUNC):
            raise ArgumentValueError(f"function {name!r}: kind {kind} cannot be defined here")
        index = self.declare_function(name, kind)
        info = self._functions[index]
        if info.num_args != PACKED_NUM_ARGS:
            raise ArgumentValueError(f"function {name!r} is defined twice")
        start = len(self._instructions)
        info.kind, info.num_args, info.param_names = int(kind), num_inputs, names
        info.start_instr = start if kind == VM_FUNC else 0
        info.register_file_size = max(num_inputs, init_register_size, 0 if kind == VM_FUNC else num_inputs + 1)
        self._current = index
        try:
            yield
            self._end_function(info, start)
        except BaseException:
            del self._instructions[start:], self._sources[start:], self._notes[start:]
            info.num_args, info.register_file_size, info.start_instr, info.param_names = PACKED_NUM_ARGS, 0, 0, []
            raise
        finally:
            self._jumps.clear()
            self._labels.clear()
            self._current = None

    def _end_function(self, info: FunctionInfo, start: int) -> None:
        end = len(self._instructions)
        if info.kind == VMTIR_FUNC:
            if end != start:
                raise ArgumentValueError(f"function {info.name!r}: a compiled function has no instructions")
            return
        info.end_instr = end
        unplaced = [label.name for label in self._labels if label.pc is None]
        if unplaced:
            raise ArgumentValueError(f"function {info.name!r}: labels {', '.join(unplaced)} were never placed")
        for pc, position, label in self._jumps:
            assert label.pc is not None
            self._instructions[pc][position] = label.pc - pc
        used = [-1]
        for words in self._instructions[start:end]:
            used.extend(r for r in _registers_read(words) if r < VOID_REGISTER)
            if words[0] == _CALL and words[1] < VOID_REGISTER:
                used.append(words[1])
        info.register_file_size = max(info.register_file_size, max(used) + 1)

    @checked_method
    def set_signature(self, name: str, signature: Signature) -> None:
        """Records what the function `name` takes and returns."""
        self._signatures[name] = signature

    @checked_method
    def set_metadata(self, key: str, value: str) -> None:
        """Records a free string."""
        self._metadata[key] = value

    # ---- instructions

    @checked_method
    def label(self, name: str | None = None) -> Label:
        """A new jump target of the current function."""
        label = Label(name or f"label{len(self._labels)}", self._scope())
        self._labels.append(label)
        return label

    @checked_method
    def place(self, label: Label) -> None:
        """Makes the next instruction the target of `label`."""
        if label.function != self._scope():
            raise ArgumentValueError(f"{label!r} belongs to {self._functions[label.function].name!r}")
        if label.pc is not None:
            raise ArgumentValueError(f"{label!r} is placed twice")
        label.pc = len(self._instructions)

    def emit_call(
        self,
        name: str,
        args: Iterable[Any] = (),
        dst: Operand | int | None = None,
        source: str | None = None,
        note: str | None = None,
    ) -> None:
        """dst := name(args...).

        Parameters
        ----------
        name : str
            The callee; a new name becomes a packed function.
        args : iterable
            Operands, or plain values: an int becomes an immediate (or a constant if it does not fit), None the void
            argument, anything else a constant.
        dst : Operand or int, optional
            Register of the result; dropped when absent.
        source : str, optional
            The operator that this instruction came from, for error messages and profiles.
        note : str, optional
            Why it is this instruction, for explanations.
        """
        self._scope()
        callee = self.declare_function(name)
        if args is None:
            args = ()
        elif not arguments.is_iterable(args):
            raise arguments.wrong_type(f"call of {name!r}", "args", "an iterable of operands and values", args)
        words = [self._operand(arg) for arg in args]
        if len(words) > MAX_ARGS:
            raise ArgumentValueError(f"call of {name!r}: {len(words)} arguments, the limit is {MAX_ARGS}")
        target = VOID_REGISTER if dst is None else self._register(dst)
        self._emit([_CALL, target, callee, len(words), *words], source, note)

    def emit_ret(
        self, result: Operand | int | None = None, source: str | None = None, note: str | None = None
    ) -> None:
        """Returns the value of a register; None without one."""
        self._emit([_RET, VOID_REGISTER if result is None else self._register(result)], source, note)

    def emit_goto(self, target: int | Label, source: str | None = None, note: str | None = None) -> None:
        """Jumps to a label, or by an offset counted in instructions."""
        self._emit_jump([_GOTO, 0], target, source, note)

    def emit_if(
        self, cond: Operand | int, false_target: int | Label, source: str | None = None, note: str | None = None
    ) -> None:
        """Continues when the register is true (non-zero), else jumps to a label or by an offset in instructions."""
        self._emit_jump([_IF, self._register(cond), 0], false_target, source, note)

    def _emit_jump(self, words: list[int], target: int | Label, source: str | None, note: str | None) -> None:
        if isinstance(target, Label):
            if target.function != self._scope():
                raise ArgumentValueError(f"{target!r} belongs to {self._functions[target.function].name!r}")
            self._jumps.append((len(self._instructions), len(words) - 1, target))
        else:
            words[-1] = arguments.integer("ExecBuilder", "the target of a jump", target, -(2**31), 2**31 - 1)
        self._emit(words, source, note)

    def _emit(self, words: list[int], source: str | None, note: str | None) -> None:
        for what, said in (("source", source), ("note", note)):
            if said is not None and not isinstance(said, str):
                raise arguments.wrong_type("ExecBuilder", what, "a str or None", said)
        if self._functions[self._scope()].kind != VM_FUNC:
            raise ArgumentValueError("a compiled function has no instructions")
        self._instructions.append(words)
        self._sources.append(source)
        self._notes.append(note)

    def _scope(self) -> int:
        if self._current is None:
            raise ArgumentValueError("instructions and labels belong inside `with builder.function(...)`")
        return self._current

    def _register(self, register: Operand | int) -> int:
        if isinstance(register, Operand):
            if register.kind != _REGISTER:
                raise ArgumentValueError(f"{register!r} is not a register")
            return register.value
        return self.r(register).value

    def _operand(self, arg: Any) -> int:
        if isinstance(arg, Operand):
            return int(arg)
        if arg is None:
            return int(self.void_arg())
        if isinstance(arg, (int, np.integer, np.bool_)) and -IMMEDIATE_MAX <= int(arg) <= IMMEDIATE_MAX:
            return int(self.imm(int(arg)))
        return int(self.convert_constant(arg))

    # ---- the result

    @checked_method
    def get(self, *, formalize: bool = True, check: bool = True) -> VMExecutable:
        """The executable.

        Parameters
        ----------
        formalize : bool
            Renumber the registers of every function in order of first definition, so that equal programs are equal.
        check : bool
            Run the verifier. Reading a register that is never written is refused in any case.

        Raises
        ------
        VerifyError
            If the program breaks a rule.
        """
        if self._current is not None:
            raise ArgumentValueError(f"get: the scope of {self._functions[self._current].name!r} is still open")
        functions = [copy(info) for info in self._functions]
        instructions = [list(words) for words in self._instructions]
        for info in functions:
            info.param_names = list(info.param_names)
            if info.kind != PACKED_FUNC and info.num_args == PACKED_NUM_ARGS:
                raise VerifyError(
                    f"function {info.name!r} is declared but never defined",
                    rule="undefined-function",
                    function=info.name,
                )
            if info.kind == VM_FUNC:
                body = instructions[info.start_instr : info.end_instr]
                _check_written(info, body)
                if formalize:
                    _formalize(info, body)
        sizes = [len(words) for words in instructions]
        executable = VMExecutable(
            functions,
            self._constants,
            np.cumsum([0, *sizes[:-1]], dtype=np.int64) if sizes else np.zeros(0, np.int64),
            np.array([word for words in instructions for word in words], dtype=np.int64),
            self._memory_scopes,
            DebugInfo(self._sources),
            self._signatures,
            self._metadata,
            DebugInfo(self._notes),
        )
        if check:
            executable.verify()
        return executable


def _registers_read(words: list[int]) -> Iterator[int]:
    if words[0] == _CALL:
        for word in words[4:]:
            kind, value = unpack_arg(word)
            if kind == _REGISTER:
                yield value
    elif words[0] != _GOTO:
        yield words[1]


def _check_written(info: FunctionInfo, body: list[list[int]]) -> None:
    written = {words[1] for words in body if words[0] == _CALL}
    for i, words in enumerate(body):
        for register in _registers_read(words):
            if info.num_args <= register < VOID_REGISTER and register not in written:
                raise VerifyError(
                    f"register {register_name(register)} of function {info.name!r} is read (instruction "
                    f"{info.start_instr + i}) but never written",
                    rule="undefined-register",
                    function=info.name,
                    pc=info.start_instr + i,
                )


def _formalize(info: FunctionInfo, body: list[list[int]]) -> None:
    """Renumbers registers in order of first definition, arguments keep theirs; the frame shrinks to what is used."""
    renamed = {register: register for register in (*range(info.num_args), VOID_REGISTER, VM_REGISTER)}
    specials = 2
    for words in body:
        if words[0] == _CALL:
            renamed.setdefault(words[1], len(renamed) - specials)
    for words in body:
        if words[0] == _CALL:
            words[1] = renamed[words[1]]
            for i in range(4, len(words)):
                kind, value = unpack_arg(words[i])
                if kind == _REGISTER:
                    words[i] = pack_arg(_REGISTER, renamed[value])
        elif words[0] != _GOTO:
            words[1] = renamed[words[1]]
    info.register_file_size = len(renamed) - specials
