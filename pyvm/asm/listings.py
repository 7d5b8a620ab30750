"""Texts of an executable that the assembler does not read: TVM's layout, and a Python program that rebuilds it."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from pyvm.checked_calls import checked
from vmcore.errors import FormatError
from vmcore.isa import VM_REGISTER, VOID_REGISTER, register_name, unpack_arg
from vmcore.types import BitsArray, DataType, Shape, tensor_dtype

from ..constants import Constant, constant_key
from ..executable import PACKED_FUNC, VM_FUNC, VMExecutable
from .words import CALL, CONSTANT, GOTO, IF, IMMEDIATE, IMMEDIATE_LIMIT, REGISTER, RET, instructions, is_whole


@checked
def tvm_text(executable: VMExecutable) -> str:
    """The program in the layout of TVM's `VMExecutable.as_text`."""
    code = instructions(executable)
    names = [info.name for info in executable.functions]

    def name(index: int) -> str:
        return names[index] if 0 <= index < len(names) else f"#{index}"

    def arg(word: int) -> str:
        kind, value = unpack_arg(word)
        if kind == REGISTER:
            return register_name(value)
        if kind == IMMEDIATE:
            return f"i{value}"
        return f"c[{value}]" if kind == CONSTANT else f"f[{name(value)}]"

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
            if not is_whole(words):
                raise FormatError(f"function {info.name!r} holds the malformed instruction {words[:8]}")
            if words[0] == CALL:
                args = ", ".join(map(arg, words[4:]))
                out.append(f"  {'call':6}{name(words[2]):16} in: {args:12} dst: {register_name(words[1])}\n")
            elif words[0] == RET:
                out.append(f"  {'ret':6}{register_name(words[1])}\n")
            elif words[0] == GOTO:
                out.append(f"  {'goto':6}{words[1]}\n")
            else:
                out.append(f"  {'If':6}{register_name(words[1])}, {words[2]}\n")
        out.append("\n")
    return "".join(out)


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


@checked
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
        "from pyvm.signature import Signature",
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
        if kind == REGISTER:
            return register(value)
        if kind == IMMEDIATE:
            return f"b.imm({value})" if value > -IMMEDIATE_LIMIT else f"Operand({word})"
        return f"c{value}" if kind == CONSTANT else f"b.f({names[value]!r})"

    defined = [info for info in executable.functions if info.kind != PACKED_FUNC]
    for info in sorted(defined, key=lambda info: info.start_instr):
        fields = f"{info.name!r}, num_inputs={info.num_args}"
        if info.param_names:
            fields += f", param_names={info.param_names!r}"
        fields += f", kind={info.kind}, init_register_size={info.register_file_size}"
        out.append(f"with b.function({fields}):")
        start, end = info.start_instr, info.end_instr
        targets = {pc: pc + code[pc][-1] for pc in range(start, end) if code[pc][0] in (GOTO, IF)}
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
            if words[0] == CALL:
                dst = "" if words[1] == VOID_REGISTER else f", dst={register(words[1])}"
                args = ", ".join(map(arg, words[4:]))
                out.append(f"    b.emit_call({names[words[2]]!r}, [{args}]{dst}{tail})")
            elif words[0] == RET:
                out.append(f"    b.emit_ret({register(words[1])}{tail})")
            elif words[0] == GOTO:
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
