"""What an operator is, and the table of all operators.

An operator carries three definitions that must agree: `infer` (struct info of the result), `evaluate` (numpy reference,
the oracle of the tests and the engine of constant folding) and `lower` (how legalization expresses it). The families
(`elementwise`, `reduce`, `nn`, `linalg`, `movement`, `shape`) register theirs at import; the public constructor of an
operator, `pyvm.op.<name>`, lives beside its registration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pyvm.op.attributes import Kind, wrong_attrs
from vmcore.errors import CompileError, InternalError, LoweringError

if TYPE_CHECKING:
    from pyvm.ir.builder import BlockBuilder
    from pyvm.ir.expr import Call, Expr, ShapeExpr
    from pyvm.ir.struct_info import StructInfo


@dataclass(frozen=True)
class KernelCall:
    """A destination-passing call: legalize allocates one tensor per tensor of the result struct info and appends them.

    Attributes
    ----------
    kernel : str
        Full name, e.g. "kernel.relu".
    args : list
        Inputs and attributes in the kernel's order. Python scalars become immediates or constants, None an absent
        optional argument, a numpy array a constant, an Expr itself.
    inplace : tuple of int
        Positions in `args` of inputs whose buffer the first output may reuse if shape and dtype are the same and the
        input dies here. Any other overlap of an output with an input is forbidden.
    """

    kernel: str
    args: list[Expr | np.ndarray | int | float | bool | str | None]
    inplace: tuple[int, ...] = ()


@dataclass(frozen=True)
class View:
    """The same bytes under another shape with as many elements (becomes `vm.builtin.reshape`)."""

    x: Expr
    shape: ShapeExpr | Expr


@dataclass(frozen=True)
class PackedCall:
    """A call whose result is what the function returns, e.g. a builtin."""

    name: str
    args: list[Expr | np.ndarray | int | float | bool | str | None]


@dataclass(frozen=True)
class Decompose:
    """The call is rewritten into other operators before lowering.

    `expr_builder` emits them into the builder it gets and returns the expression that replaces the call.
    """

    expr_builder: Callable[[BlockBuilder], Expr]


Lowered = KernelCall | View | PackedCall | Decompose


@dataclass(frozen=True, eq=False)
class Op:
    """One operator of the IR. Identity is the object: there is one per name.

    Attributes
    ----------
    name : str
        Name in the IR text and in `get_op`.
    infer : callable
        `infer(call) -> StructInfo`; every argument of `call` has struct info. Raises CompileError.
    evaluate : callable
        `evaluate(attrs, *args)`: tensors as numpy arrays (not modified), shapes as tuples of int, scalars as int or
        float; returns a numpy array, or a tuple of them when `n_outputs` > 1, a tuple of int for a shape result, an int
        for a primitive result.
    lower : callable
        `lower(call) -> Lowered`; `call` has struct info.
    n_outputs : int
        Tensors in the result; more than one makes the result a tuple.
    is_pure : bool
        Whether a call may be folded, removed or merged with an equal one.
    operands : (int, int or None)
        How many operands a call has at least and at most; None is any number.
    attrs : mapping
        The attributes of a call, and what each may be.
    """

    name: str
    infer: Callable[[Call], StructInfo]
    evaluate: Callable[..., Any]
    lower: Callable[[Call], Lowered]
    n_outputs: int = 1
    is_pure: bool = True
    operands: tuple[int, int | None] = (0, None)
    attrs: Mapping[str, Kind] = field(default_factory=dict)

    def misuse(self, call: Call) -> str | None:
        """What is wrong with the number of operands or the attributes of a call; None if nothing is."""
        n, (least, most) = len(call.args), self.operands
        if least <= n and (most is None or n <= most):
            problem = wrong_attrs(self.attrs, call.attrs)
            return None if problem is None else f"{self.name}: {problem}"
        takes = str(least) if least == most else f"at least {least}" if most is None else f"{least} to {most}"
        return f"{self.name}: takes {takes} operand{'' if takes.endswith('1') else 's'}, got {n}"

    def lowered(self, call: Call) -> Lowered:
        """`lower(call)`. Raises LoweringError for attributes that the operator cannot use, or that are missing."""
        try:
            return self.lower(call)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, CompileError):
                raise
            where = f" in {call.source}" if call.source is not None else ""
            text = f"{type(error).__name__}: {error}"
            raise LoweringError(f"{self.name}: cannot be lowered with its attributes{where}: {text}") from error

    def __repr__(self) -> str:
        return f"Op({self.name!r})"

    def __reduce__(self) -> tuple[Callable[[str], Op], tuple[str]]:
        # Copies and pickles of a module keep pointing at the one operator of this name.
        return get_op, (self.name,)

    def __deepcopy__(self, memo: dict[int, object]) -> Op:
        return self


_ops: dict[str, Op] = {}


def register_op(op: Op) -> Op:
    """Add `op` to the table and return it; a second operator of the same name is a defect."""
    if op.name in _ops:
        raise InternalError(f"operator {op.name!r} is registered twice")
    _ops[op.name] = op
    return op


def get_op(name: str) -> Op:
    """The operator called `name`.

    Raises
    ------
    CompileError
        If there is none; the message names similar ones.
    """
    _load_families()
    op = _ops.get(name)
    if op is None:
        import difflib

        close = difflib.get_close_matches(name, _ops, n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise CompileError(f"there is no operator {name!r}{hint}")
    return op


def list_op_names() -> list[str]:
    """Names of all operators, sorted."""
    _load_families()
    return sorted(_ops)


def _load_families() -> None:
    import pyvm.op  # noqa: F401  its import registers every family


class _OpTable(Mapping[str, Op]):
    """Read-only view of the table."""

    def __getitem__(self, name: str) -> Op:
        _load_families()
        return _ops[name]

    def __iter__(self) -> Iterator[str]:
        _load_families()
        return iter(_ops)

    def __len__(self) -> int:
        _load_families()
        return len(_ops)


ops: Mapping[str, Op] = _OpTable()
