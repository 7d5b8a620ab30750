"""The nodes of a program. Immutable; compared by identity, except global and external names, which are their names.

`struct_info` is None on a node that was not inferred yet; `BlockBuilder` makes inferred nodes. `source` names the
operator of the original model that a node came from ("conv1 (Conv-11)") and survives every pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from vmcore.arguments import shown, without_mask, wrong_type
from vmcore.errors import AllocationError, ArgumentTypeError, ArgumentValueError, IndexRangeError, RecursionLimitError

from .prim import Prim, PrimExpr, as_prim
from .struct_info import (
    CallableStructInfo,
    ObjectStructInfo,
    PrimStructInfo,
    ShapeStructInfo,
    StructInfo,
    TensorStructInfo,
    TupleStructInfo,
    dtype_name,
)

if TYPE_CHECKING:
    from pyvm.op.registry import Op


class Expr:
    """Base class of everything that has a value."""

    __slots__ = ("struct_info",)
    struct_info: StructInfo | None

    def __str__(self) -> str:
        from .printer import format_expr

        return format_expr(self)

    __repr__ = __str__


class Var(Expr):
    """A name for the value of one parameter or binding. Two variables may share a name: identity counts."""

    __slots__ = ("name",)

    def __init__(self, name: str, struct_info: StructInfo | None = None) -> None:
        if not isinstance(name, str):
            raise wrong_type("Var", "name", "a str", name)
        self.name = name
        self.struct_info = struct_info


class DataflowVar(Var):
    """A variable that is visible in its dataflow block only."""

    __slots__ = ()


class Constant(Expr):
    """A tensor known at compile time. The array is made read-only: constants are shared by passes and executables."""

    __slots__ = ("data",)

    def __init__(self, data: Any) -> None:
        try:
            array = np.asarray(without_mask("Constant", data))
        except ValueError as error:  # rows of different lengths
            raise ArgumentValueError(f"Constant: this {type(data).__name__} is no array: {error}") from None
        if not array.flags.c_contiguous or not array.dtype.isnative:
            try:
                array = array.astype(array.dtype.newbyteorder("="), order="C")
            except MemoryError as error:
                raise AllocationError(f"Constant: no memory for a compact copy: {error}") from None
        view = array.view()
        view.flags.writeable = False
        self.data: np.ndarray = view
        self.struct_info = TensorStructInfo(array.shape, array.dtype)


class ShapeExpr(Expr):
    """A shape, each value an int or a symbolic integer."""

    __slots__ = ("values",)

    def __init__(self, values: Iterable[Prim]) -> None:
        self.values: tuple[Prim, ...] = tuple(map(as_prim, values))
        self.struct_info = ShapeStructInfo(self.values)


class PrimValue(Expr):
    """A scalar: bool, int, float, or a symbolic integer."""

    __slots__ = ("value",)

    def __init__(self, value: bool | int | float | PrimExpr) -> None:
        self.value = value
        if isinstance(value, (bool, np.bool_)):
            dtype = "bool"
        elif isinstance(value, (float, np.floating)):
            dtype = "float64"
        else:
            self.value = as_prim(value)
            dtype = "int64"
        self.struct_info = PrimStructInfo(dtype, self.value)


class StringImm(Expr):
    """A string."""

    __slots__ = ("value",)

    def __init__(self, value: str) -> None:
        self.value = value
        self.struct_info = ObjectStructInfo()


class DataTypeImm(Expr):
    """An element type as a value."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = dtype_name(value)
        self.struct_info = ObjectStructInfo()


class NoneImm(Expr):
    """No value: an absent optional argument of an external function."""

    __slots__ = ()

    def __init__(self) -> None:
        self.struct_info = ObjectStructInfo()


class Tuple(Expr):
    """A tuple of values."""

    __slots__ = ("fields",)

    def __init__(self, fields: Iterable[Expr]) -> None:
        self.fields: tuple[Expr, ...] = tuple(fields)
        for field in self.fields:
            if not isinstance(field, Expr):
                raise wrong_type("Tuple", "each field", "an Expr", field)
        infos = [field.struct_info for field in self.fields]
        self.struct_info = TupleStructInfo(infos) if all(infos) else None  # type: ignore[arg-type]


class TupleGetItem(Expr):
    """One field of a tuple. `struct_info` says what it is where the tuple's own struct info does not."""

    __slots__ = ("tuple", "index")

    def __init__(self, tuple: Expr, index: int, struct_info: StructInfo | None = None) -> None:
        self.tuple = tuple
        self.index = index
        info = tuple.struct_info
        self.struct_info = struct_info
        if isinstance(info, TupleStructInfo):
            if not 0 <= index < len(info.fields):
                raise IndexRangeError(f"TupleGetItem: index {index} of a tuple with {len(info.fields)} fields")
            self.struct_info = info.fields[index]


class GlobalVar(Expr):
    """A function of the module, by name."""

    __slots__ = ("name",)

    def __init__(self, name: str, struct_info: StructInfo | None = None) -> None:
        self.name = name
        self.struct_info = struct_info

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GlobalVar) and other.name == self.name

    def __hash__(self) -> int:
        return hash(("GlobalVar", self.name))


class ExternFunc(Expr):
    """A function outside the module (a kernel, a builtin, a registered Python function), by name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name
        self.struct_info = CallableStructInfo()

    def misuse(self, call: Call) -> str | None:
        """What is wrong with a call of this function; None if nothing is."""
        if not isinstance(self.name, str) or not self.name or "\0" in self.name:
            return f"extern: the name of a function must be a str without NUL that is not empty, got {self.name!r}"
        dps = call.attrs.get("dps", False)
        return None if isinstance(dps, bool) else f"extern {self.name!r}: dps must be True or False, got {dps}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExternFunc) and other.name == self.name

    def __hash__(self) -> int:
        return hash(("ExternFunc", self.name))


# What an operand may be: a name, or a value that needs no computation.
LEAVES = (Var, Constant, ShapeExpr, PrimValue, StringImm, DataTypeImm, NoneImm, GlobalVar, ExternFunc)

Callee = Union["Op", ExternFunc, GlobalVar, Var]


class Call(Expr):
    """A call of an operator, a function of the module, an external function or a closure.

    A call of an `ExternFunc` with the attribute "dps" allocates tensors for its struct info and passes them last
    (`call_dps_packed`); without it the external function returns its result (`call_packed`).
    """

    __slots__ = ("op", "args", "attrs", "source")

    def __init__(
        self,
        op: Callee,
        args: Iterable[Expr] = (),
        attrs: Mapping[str, Any] | None = None,
        struct_info: StructInfo | None = None,
        source: str | None = None,
    ) -> None:
        if not isinstance(op, Expr) and not hasattr(op, "misuse"):  # an Op: that module imports this one
            raise wrong_type("Call", "op", "an operator or a function", op)
        self.op = op
        self.args: tuple[Expr, ...] = tuple(args)
        self.attrs: dict[str, Any] = dict(attrs) if attrs else {}
        self.struct_info = struct_info
        self.source = source


class If(Expr):
    """The value of one of two branches. The condition is a bool scalar or a bool tensor with one element."""

    __slots__ = ("cond", "true_branch", "false_branch")

    def __init__(
        self, cond: Expr, true_branch: SeqExpr, false_branch: SeqExpr, struct_info: StructInfo | None = None
    ) -> None:
        self.cond = cond
        self.true_branch = true_branch
        self.false_branch = false_branch
        self.struct_info = struct_info


class VarBinding:
    """var = value."""

    __slots__ = ("var", "value", "source")

    def __init__(self, var: Var, value: Expr, source: str | None = None) -> None:
        self.var = var
        self.value = value
        self.source = source if source is not None else getattr(value, "source", None)


class MatchCast:
    """var = value, with a check at run time that `value` has this struct info; defines its new symbols."""

    __slots__ = ("var", "value", "struct_info", "source")

    def __init__(self, var: Var, value: Expr, struct_info: StructInfo, source: str | None = None) -> None:
        self.var = var
        self.value = value
        self.struct_info = struct_info
        self.source = source


Binding = VarBinding | MatchCast


class BindingBlock:
    """Bindings in order of execution; may have side effects and control flow."""

    __slots__ = ("bindings",)

    def __init__(self, bindings: Iterable[Binding]) -> None:
        self.bindings: tuple[Binding, ...] = tuple(bindings)


class DataflowBlock(BindingBlock):
    """Bindings without side effects and control flow. Only its `Var`s (not `DataflowVar`s) are visible outside."""

    __slots__ = ()


class SeqExpr(Expr):
    """Blocks, then a value."""

    __slots__ = ("blocks", "body")

    def __init__(self, blocks: Iterable[BindingBlock], body: Expr) -> None:
        self.blocks: tuple[BindingBlock, ...] = tuple(blocks)
        self.body = body
        self.struct_info = body.struct_info

    def bindings(self) -> Iterator[Binding]:
        """All bindings of all blocks in order (not those inside branches)."""
        for block in self.blocks:
            yield from block.bindings


class Function(Expr):
    """A function of a module. `attrs` holds facts for tools, such as "output_names"."""

    __slots__ = ("params", "body", "ret_struct_info", "attrs")

    def __init__(
        self,
        params: Iterable[Var],
        body: SeqExpr,
        ret_struct_info: StructInfo | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        self.params: tuple[Var, ...] = tuple(params)
        self.body = body
        self.ret_struct_info: StructInfo = ret_struct_info or body.struct_info or ObjectStructInfo()
        self.attrs: dict[str, Any] = dict(attrs) if attrs else {}
        self.struct_info = CallableStructInfo(
            [param.struct_info or ObjectStructInfo() for param in self.params], self.ret_struct_info
        )

    def with_body(self, body: SeqExpr) -> Function:
        """The same function with another body."""
        return Function(self.params, body, self.ret_struct_info, self.attrs)


class IRModule:
    """Functions by name, in order. Passes return new modules and never change one."""

    __slots__ = ("functions", "attrs")

    def __init__(
        self,
        functions: Mapping[str, Function] | Mapping[GlobalVar, Function] | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        self.functions: dict[str, Function] = {
            key.name if isinstance(key, GlobalVar) else key: function for key, function in (functions or {}).items()
        }
        self.attrs: dict[str, Any] = dict(attrs) if attrs else {}

    def __getitem__(self, name: str | GlobalVar) -> Function:
        return self.functions[name.name if isinstance(name, GlobalVar) else name]

    def __contains__(self, name: object) -> bool:
        return (name.name if isinstance(name, GlobalVar) else name) in self.functions

    def __iter__(self) -> Iterator[str]:
        return iter(self.functions)

    def script(self, elide_constants: bool = False) -> str:
        """The module as readable text, which `pyvm.ir.parse` reads back.

        With `elide_constants`, of long constants only the first elements are shown: for reading only.
        """
        from .printer import format_module

        return format_module(self, elide_constants)

    def __str__(self) -> str:
        return self.script()


_MAX_NESTING = 200  # of tuples in Python values: a list may contain itself


def as_expr(value: Any) -> Expr:
    """A Python value as an expression: arrays become `Constant`, scalars `PrimValue`, tuples of ints `ShapeExpr` ..."""
    return _as_expr(value, 0)


def _as_expr(value: Any, depth: int) -> Expr:
    if isinstance(value, Expr):
        return value
    if value is None:
        return NoneImm()
    if isinstance(value, (bool, int, float, PrimExpr, np.bool_, np.integer, np.floating)):
        return PrimValue(value)  # type: ignore[arg-type]
    if isinstance(value, str):
        return StringImm(value)
    if isinstance(value, np.ndarray):
        return Constant(value)
    if isinstance(value, (tuple, list)):
        if all(isinstance(item, (int, np.integer, PrimExpr)) for item in value):
            return ShapeExpr(value)
        if depth == _MAX_NESTING:
            raise RecursionLimitError(f"a tuple nested more than {_MAX_NESTING} deep cannot become an expression")
        return Tuple([_as_expr(item, depth + 1) for item in value])
    raise ArgumentTypeError(f"no expression stands for {shown(value)}")


def call_packed(name: str, *args: Any, struct_info: StructInfo | None = None) -> Call:
    """A call of an external function that returns its result, which has `struct_info` (trusted)."""
    return Call(ExternFunc(name), map(as_expr, args), None, struct_info or ObjectStructInfo())


def call_dps_packed(name: str, args: Iterable[Any], struct_info: StructInfo) -> Call:
    """A call of an external function in destination-passing style.

    Tensors for `struct_info` (a tensor or a tuple of tensors) are allocated and passed after `args`. The function
    must fill them and must not keep a reference to any argument: their memory is used again.
    """
    return Call(ExternFunc(name), map(as_expr, args), {"dps": True}, struct_info)
