"""What every instruction works on, found by following the bytecode without running it.

The walk knows what the builtins do (allocation, shapes, checks, tuples, closures), so it finds the shape of every
tensor, with symbols where only a run decides, for programs of any compiler. What it cannot know is unknown, never
wrong: where paths meet, only what both agree on is kept. The program need not be one that the verifier accepts.
"""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from pyvm.executable import VM_FUNC, VMExecutable
from pyvm.ir.prim import Prim, SymVar
from vmcore.isa import instruction_words
from vmcore.types import DataType, Shape, tensor_dtype

from . import sizes
from .facts import FunctionFacts, value_of_spec
from .sizes import Size
from .values import UNKNOWN, ScalarValue, ShapeValue, TensorValue, TextValue, TupleValue, Value
from .walk import FunctionWalk

_MAX_CALL_DEPTH = 40


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
                facts = FunctionWalk(self, self.executable.functions[index]).run()
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
