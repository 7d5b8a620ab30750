"""Names of the lowered form: after `legalize` a program calls external functions, tensors are allocated explicitly.

`ALLOC_TENSOR` and `KILL` stand for instructions that later passes make; the rest are builtins of the virtual machine.
"""

from __future__ import annotations

from pyvm.ir import (
    Call,
    DataTypeImm,
    Expr,
    ExternFunc,
    Function,
    IRModule,
    ObjectStructInfo,
    ShapeExpr,
    StructInfo,
    TensorStructInfo,
)
from vmcore.errors import LoweringError

ALLOC_TENSOR = "pyvm.intrinsic.alloc_tensor"  # (shape, dtype): a tensor whose memory is not planned yet
KILL = "pyvm.intrinsic.kill"  # (var): the variable is dead, its register lets go of the value

ALLOC_STORAGE = "vm.builtin.alloc_storage"
ALLOC_TENSOR_AT = "vm.builtin.alloc_tensor"
PLAN_ARENA = "pyvm.builtin.plan_arena"  # (table, size...): shape(bytes of the arena, offset of each buffer)
CHECK_UPPER_BOUND = "pyvm.builtin.check_upper_bound"  # (heap, slot, bound, name of the symbol, context)
RESHAPE = "vm.builtin.reshape"
CONCAT = "kernel.concat"  # (tensors..., axis, destination)

# Attributes of lowered calls; they steer later passes and do not reach the bytecode.
DESTINATIONS = "destinations"  # how many trailing arguments the call fills; it keeps no reference to any argument
INPLACE = "inplace"  # positions of arguments whose memory the first destination may take over
BORROWS = "borrows"  # the function keeps no reference to its arguments, though its result may be one of them
ARENA = "arena"  # this storage is the arena of the function

# An attribute of functions and of modules: ((name of a symbol, its largest value), ...).
UPPER_BOUNDS = "upper_bounds"

# Builtins whose first argument is the virtual machine itself; code generation supplies it.
NEEDS_VM = frozenset({"vm.builtin.alloc_shape_heap", ALLOC_STORAGE, "vm.builtin.invoke_closure"})


def extern_call(
    name: str,
    args: tuple[Expr, ...],
    struct_info: StructInfo | None = None,
    attrs: dict[str, object] | None = None,
    source: str | None = None,
) -> Call:
    """A lowered call."""
    return Call(ExternFunc(name), args, attrs, struct_info or ObjectStructInfo(), source)


def extern_name(value: object) -> str | None:
    """Name of the external function that a bound value calls."""
    return value.op.name if isinstance(value, Call) and isinstance(value.op, ExternFunc) else None


def alloc_tensor(info: TensorStructInfo, source: str | None) -> Call:
    """The allocation of a tensor of known shape and dtype."""
    assert info.shape is not None and info.dtype is not None
    return extern_call(ALLOC_TENSOR, (ShapeExpr(info.shape), DataTypeImm(info.dtype)), info, None, source)


def upper_bounds(module: IRModule, function: Function) -> dict[str, int]:
    """The largest values of symbols that the module or the function declares."""
    found: dict[str, int] = {}
    for attrs in (module.attrs, function.attrs):
        try:
            pairs = [(name, bound) for name, bound in attrs.get(UPPER_BOUNDS, ())]
        except (TypeError, ValueError):
            pairs = [(None, None)]
        for name, bound in pairs:
            if not isinstance(name, str) or not isinstance(bound, int) or not 0 <= bound < 2**63:
                raise LoweringError(f"{UPPER_BOUNDS}={attrs[UPPER_BOUNDS]!r}: expected (name, number) pairs")
            found[name] = bound
    return found
