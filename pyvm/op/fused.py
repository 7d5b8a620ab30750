"""Chains of elementwise operators as one operator: `fused_elementwise`, made by the pass `fuse_elementwise`.

The chain is an attribute, a text such as `mul(x0, 0.5); erf(t0); add(t1, 1.0)`: x0, x1, ... are the arguments, t0, t1,
... the results of the steps, the last of which is the result. Numbers take the element type of the operand beside them.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pyvm.ir.expr import Call, Constant, Expr, ShapeExpr
from pyvm.ir.struct_info import StructInfo, TensorStructInfo
from pyvm.op.attributes import TEXT
from pyvm.op.common import define, fail, make_call, same_shape, static_shape, tensor_info
from pyvm.op.registry import KernelCall, Lowered, get_op
from vmcore.kernels import fused as kernel

_OPCODES = kernel.opcodes()
_DTYPES = {name: number for number, name in enumerate(kernel.DTYPES)}
_STEP = re.compile(r"\s*(\w+)\(([^()]*)\)\s*")
_NUMBER_NAMES = {"None": None, "True": True, "False": False, "inf": math.inf, "-inf": -math.inf}

Operand = str | float | int | bool


@dataclass(frozen=True)
class Step:
    """One operator of a chain.

    Attributes
    ----------
    op : str
        Name of an elementwise operator.
    operands : tuple
        "x3": argument 3 of the chain; "t2": result of step 2; a number.
    attrs : tuple of (name, value)
        Attributes of the operator; "of" is the element type where all operands but a condition are numbers.
    """

    op: str
    operands: tuple[Operand, ...]
    attrs: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        parts = [*map(_text, self.operands), *(f"{name}={_text(value)}" for name, value in self.attrs)]
        return f"{self.op}({', '.join(parts)})"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _value(text: str) -> Any:
    if text in _NUMBER_NAMES:
        return _NUMBER_NAMES[text]
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text


def format_program(steps: Sequence[Step]) -> str:
    """The text of a chain."""
    return "; ".join(map(str, steps))


@lru_cache(maxsize=1024)
def parse_program(text: str) -> tuple[Step, ...]:
    """The chain that a text describes.

    Raises
    ------
    CompileError
        If the text is not well-formed or a step names an operator that no chain can have.
    """
    steps = []
    for number, part in enumerate(text.split(";")):
        match = _STEP.fullmatch(part)
        if match is None or match[1] not in _OPCODES:
            fail("fused_elementwise", f"step {number}, {part.strip()!r}, is no elementwise operator of its operands")
        operands: list[Operand] = []
        attrs: list[tuple[str, Any]] = []
        for field in filter(None, map(str.strip, match[2].split(","))):
            name, equals, value = field.partition("=")
            if equals:
                attrs.append((name.strip(), _value(value.strip())))
            else:
                operands.append(_value(field))
        steps.append(Step(match[1], tuple(operands), tuple(attrs)))
    return tuple(steps)


def calls_of(steps: Sequence[Step], args: Sequence[Expr]) -> list[Call]:
    """The operators of a chain as calls on `args`, on each other and on constants; all have struct info."""
    calls: list[Call] = []
    for number, step in enumerate(steps):
        exprs = [_operand(operand, number, args, calls) for operand in step.operands]
        attrs = dict(step.attrs)
        dtype = attrs.pop("of", None)
        for expr in exprs[step.op == "where" :]:
            info = None if expr is None else expr.struct_info
            dtype = info.dtype if isinstance(info, TensorStructInfo) else dtype
        dtypes = [dtype] * len(exprs) if step.op != "where" else ["bool", dtype, dtype]
        known = [
            Constant(np.asarray(operand, of)) if expr is None else expr
            for operand, expr, of in zip(step.operands, exprs, dtypes, strict=True)
        ]
        calls.append(make_call(get_op(step.op), known, attrs))
    return calls


def _operand(operand: Operand, number: int, args: Sequence[Expr], calls: Sequence[Call]) -> Expr | None:
    if not isinstance(operand, str):
        return None
    known: Sequence[Expr] = args if operand[0] == "x" else calls if operand[0] == "t" else ()
    if not operand[1:].isdecimal() or int(operand[1:]) >= len(known):
        fail("fused_elementwise", f"step {number} reads {operand!r}, which is no argument and no step before it")
    return known[int(operand[1:])]


def _infer(call: Call) -> StructInfo:
    calls = calls_of(parse_program(call.attrs["program"]), call.args)
    info = calls[-1].struct_info
    assert info is not None
    return info


def _evaluate(attrs: dict[str, Any], *arrays: np.ndarray) -> np.ndarray:
    steps = parse_program(attrs["program"])
    results: list[np.ndarray] = []
    for call, step in zip(calls_of(steps, [Constant(a) for a in arrays]), steps, strict=True):
        values = [
            (arrays if operand[0] == "x" else results)[int(operand[1:])]
            if isinstance(operand, str)
            else expr.data  # type: ignore[attr-defined]
            for operand, expr in zip(step.operands, call.args, strict=True)
        ]
        results.append(get_op(step.op).evaluate(call.attrs, *values))
    return results[-1]


# --- the kernel's program ---------------------------------------------------------------------------------------------


def is_supported(call: Call) -> bool:
    """Whether a call of an elementwise operator on tensors of known shape can be a step."""
    name = call.op.name
    infos = [arg.struct_info for arg in call.args]
    if name not in _OPCODES or not all(isinstance(info, TensorStructInfo) for info in (*infos, call.struct_info)):
        return False
    if any(info.shape is None or info.dtype not in _DTYPES for info in (*infos, call.struct_info)):  # type: ignore[union-attr]
        return False
    dtype = infos[name == "where"].dtype  # type: ignore[union-attr]
    if name == "clip" and dtype == "uint64":  # its open end needs another encoding
        return False
    result = _DTYPES[call.struct_info.dtype] if name == "cast" else -1  # type: ignore[union-attr,index]
    return kernel.supports(_OPCODES[name][0], _DTYPES[dtype], result)  # type: ignore[index]


def encode(steps: Sequence[Step], args: Sequence[Expr]) -> tuple[int, ...] | None:
    """The words of the kernel's program (format: vmcore/kernels/fused.h); None if the chain is too long for it."""
    if len(steps) > kernel.MAX_STEPS or len(args) > kernel.MAX_INPUTS:
        return None
    calls = calls_of(steps, args)
    last_use = {operand: number for number, step in enumerate(steps) for operand in step.operands}
    constants: list[int] = []
    registers: dict[str, int] = {}  # of the results that are still needed
    free: list[int] = []
    n_registers = 0
    words = []
    for number, (step, call) in enumerate(zip(steps, calls, strict=True)):
        info = call.struct_info
        assert isinstance(info, TensorStructInfo)
        dtype = tensor_info(call, int(step.op == "where")).dtype
        assert dtype is not None and info.dtype is not None
        codes = []
        for operand, expr in zip(step.operands, call.args, strict=True):
            if not isinstance(operand, str):
                codes.append(kernel.FIRST_CONSTANT + _place(constants, [_bits(expr.data)]))  # type: ignore[attr-defined]
            elif operand[0] == "x":
                codes.append(int(operand[1:]))
            else:
                codes.append(kernel.FIRST_REGISTER + registers[operand])
        if step.op == "where":  # the kernel's order: what to choose from, then the condition
            codes = [codes[1], codes[2], codes[0]]
        extra = _DTYPES[info.dtype] if step.op == "cast" else _place(constants, _parameters(call, dtype))
        dying = {o for o in step.operands if isinstance(o, str) and o[0] == "t" and last_use[o] == number}
        taken = None
        for operand in sorted(dying):
            other = calls[int(operand[1:])].struct_info
            assert isinstance(other, TensorStructInfo) and other.dtype is not None
            same_width = np.dtype(other.dtype).itemsize == np.dtype(info.dtype).itemsize
            if taken is None and step.op != "cast" and same_width and same_shape(other.shape, info.shape):
                taken = registers[operand]
            else:
                free.append(registers[operand])
            del registers[operand]
        if number == len(steps) - 1:
            destination = kernel.RESULT
        else:
            if taken is None:
                # What a step reads stays apart from what it writes: registers freed by this step come last.
                usable = [r for r in free if r + kernel.FIRST_REGISTER not in codes]
                if usable:
                    taken = usable[-1]
                    free.remove(taken)
                else:
                    taken, n_registers = n_registers, n_registers + 1
            registers[f"t{number}"] = taken
            if f"t{number}" not in last_use:  # nobody reads it
                free.append(registers.pop(f"t{number}"))
            destination = kernel.FIRST_REGISTER + taken
        codes += [0] * (3 - len(codes))
        opcode = _OPCODES[step.op][0]
        words.append(int.from_bytes(bytes([opcode, _DTYPES[dtype], destination, *codes, extra, 0]), "little"))
    if len(constants) > kernel.MAX_CONSTANTS or n_registers > kernel.MAX_REGISTERS:
        return None
    head = bytes([kernel.VERSION, len(args), len(constants), len(steps), n_registers, 0, 0, 0])
    return tuple(map(_signed, (int.from_bytes(head, "little"), *constants, *words)))


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _bits(value: np.ndarray) -> int:
    return int.from_bytes(value.tobytes(), "little")


def _place(constants: list[int], values: list[int]) -> int:
    """Where `values` stand in a row among the constants, to which they are added."""
    for start in range(len(constants) - len(values) + 1):
        if constants[start : start + len(values)] == values:
            return start
    constants.extend(values)
    return len(constants) - len(values)


def _parameters(call: Call, dtype: str) -> list[int]:
    """The two words of an operator's parameters; nothing if it has none."""
    if call.op.name == "clip":
        return _clip_limits(call.attrs["lo"], call.attrs["hi"], dtype)
    n = _OPCODES[call.op.name][2]
    if n == 0:
        return []
    lowered = get_op(call.op.name).lower(call)
    assert isinstance(lowered, KernelCall)
    values = [float(v) for v in lowered.args[len(call.args) :]]  # type: ignore[arg-type]
    return [_double(v) for v in (*values, 0.0)[:2]]


def _double(value: float) -> int:
    return int.from_bytes(struct.pack("<d", value), "little")


def _clip_limits(lo: float | None, hi: float | None, dtype: str) -> list[int]:
    """The bounds as kernel.clip finds them: `hi` wins, integers are bounded by whole numbers of their type."""
    if np.dtype(dtype).kind == "f":
        low, high = -math.inf if lo is None else float(lo), math.inf if hi is None else float(hi)
        return [_double(high if low > high else low), _double(high)]
    limits = np.iinfo(dtype)
    first = limits.min if lo is None else min(max(_whole(lo, math.ceil), limits.min), limits.max)
    last = limits.max if hi is None else min(max(_whole(hi, math.floor), limits.min), limits.max)
    return [min(first, last) % (1 << 64), last % (1 << 64)]


def _whole(value: float, rounding: Any) -> int:
    if math.isinf(value):
        return int(math.copysign(1 << 80, value))
    return int(rounding(value))


def _lower(call: Call) -> Lowered:
    steps = parse_program(call.attrs["program"])
    words = encode(steps, call.args)
    if words is None:
        fail("fused_elementwise", f"a chain of {len(steps)} steps and {len(call.args)} arguments is too long")
    info = call.struct_info
    assert isinstance(info, TensorStructInfo) and info.dtype is not None
    inplace = []
    for index in range(len(call.args)):
        arg = tensor_info(call, index)
        same_width = arg.dtype is not None and np.dtype(arg.dtype).itemsize == np.dtype(info.dtype).itemsize
        if steps[-1].op != "cast" and same_width and same_shape(arg.shape, info.shape):
            inplace.append(1 + index)
    return KernelCall("kernel.fused_elementwise", [ShapeExpr(words), *call.args], tuple(inplace))


_FUSED = define("fused_elementwise", _infer, _evaluate, _lower, attrs={"program": TEXT})


def fused_elementwise(program: str, *args: Expr) -> Call:
    """A chain of elementwise operators over `args`, computed block by block in cache.

    Parameters
    ----------
    program : str
        Steps such as "mul(x0, 0.5); tanh(t0)": see the head of this module.
    *args : tensors of any element type but the half precision ones; shapes broadcast as in numpy

    Returns
    -------
    Call
        The result of the last step, which must have the shape that all arguments broadcast to.

    Raises
    ------
    CompileError
        If the program is not well-formed, or a step does not accept its operands.
    """
    return make_call(_FUSED, args, {"program": program})


def is_scalar(info: StructInfo | None) -> bool:
    """Whether a tensor is known to have exactly one element."""
    shape = static_shape(tuple(info.shape)) if isinstance(info, TensorStructInfo) and info.shape is not None else None
    return shape is not None and math.prod(shape) == 1
