"""What the walk over the bytecode finds out: about an instruction, a function, the state at one point."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyvm.executable import FunctionInfo
from pyvm.ir.prim import Prim
from pyvm.signature import ScalarSpec, ShapeSpec, Spec, TensorSpec, TupleSpec

from . import sizes
from .sizes import Size
from .values import UNKNOWN, Arg, ScalarValue, ShapeValue, TensorValue, Value, join, tuple_of


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


class State:
    """Registers and cells of shape heaps at one point of a function."""

    __slots__ = ("registers", "heap", "writers")

    def __init__(
        self, registers: dict[int, Value], heap: dict[tuple[int, int], Prim], writers: dict[int, frozenset[int]]
    ) -> None:
        self.registers = registers
        self.heap = heap
        self.writers = writers  # buffer -> instructions that may have written what is in it

    def copy(self) -> State:
        return State(dict(self.registers), dict(self.heap), dict(self.writers))

    def merge(self, other: State, exact: bool) -> bool:
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
