"""What a call of each builtin does to the registers and the shape heap: one function per builtin."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pyvm.ir.prim import SymVar

from . import sizes
from .facts import State, names_of_plan
from .sizes import Dims, Size, symbol
from .values import (
    NONE,
    UNKNOWN,
    Arg,
    FunctionValue,
    HeapValue,
    ScalarValue,
    ShapeValue,
    StorageValue,
    TensorValue,
    TextValue,
    TupleValue,
    Value,
    element_bytes,
    made_of,
    traced,
    tuple_of,
)

if TYPE_CHECKING:
    from .walk import FunctionWalk

_MAX_RANK = 64
_MAX_DIMS = 32_768  # of a shape that is no tensor's
_ANNOTATION = re.compile(r"annotation=(?:R\.)?(?:Tensor|Shape)\(\(([^()]*)\)")


def _names_of_dims(context: Value, n: int) -> list[str] | None:
    """The names that an error context gives to dimensions: compilers write the annotation of the parameter there."""
    if not isinstance(context, TextValue):
        return None
    found = _ANNOTATION.search(context.text[:4096])
    if found is None:
        return None
    names = [part.strip() for part in found[1].split(",")]
    if names and not names[-1]:
        names.pop()
    return names if len(names) == n else None


def _heap(arg: Arg) -> int | None:
    return arg.value.site if isinstance(arg.value, HeapValue) else None


def _number(arg: Arg) -> Size:
    value = arg.value
    if isinstance(value, ScalarValue) and not isinstance(value.number, float):
        return value.number
    return None


def _int(arg: Arg) -> int:
    number = _number(arg)
    if not isinstance(number, int):
        raise TypeError
    return number


def _refine(walk: FunctionWalk, arg: Arg, value: Value, state: State) -> None:
    """A check has passed: from here on the register is known to hold this."""
    if arg.kind != "register":
        return
    before = state.registers.get(arg.index)
    state.registers[arg.index] = value
    params = walk.facts.params
    if arg.index < len(params) and before is not None and before == params[arg.index]:
        params[arg.index] = value


def _register_name(walk: FunctionWalk, arg: Arg, default: str) -> str:
    names = walk.info.param_names
    if arg.kind == "register" and arg.index < min(len(names), walk.info.num_args) and names[arg.index]:
        return names[arg.index]
    return default


def _cell(code: Arg, operand: Arg, heap: int | None, state: State) -> Size:
    if _int(code) == 0:
        return _int(operand)
    return None if heap is None else state.heap.get((heap, _int(operand)))


def _store(walk: FunctionWalk, heap: int, slot: int, value: Size, pc: int, state: State) -> None:
    if value is None:
        value = symbol(f"s{pc}")
    state.heap[heap, slot] = value


def _nesting(saved: tuple[Value, ...]) -> int:
    """How deep closures capture closures."""
    depth = 0
    level = list(saved)
    while level and depth <= 8:
        depth += 1
        level = [inner for f in level if isinstance(f, FunctionValue) for inner in f.saved][:4096]
    return depth


def _evaluate_postfix(program: Dims, load: Callable[[int], Size]) -> Size:
    """The value of a program of `pyvm.builtin.eval_shape_expr`; None if it is not known."""
    stack: list[Size] = []
    arithmetic: tuple[Callable[[Size, Size], Size], ...] = (
        sizes.add,
        sizes.sub,
        sizes.mul,
        sizes.div,
        sizes.mod,
        sizes.smaller,
        sizes.larger,
    )
    for code, operand in zip(program[::2], program[1::2], strict=False):
        if code == 0:
            stack.append(operand)
        elif code == 1 and isinstance(operand, int):
            stack.append(load(operand))
        elif isinstance(code, int) and 2 <= code < 2 + len(arithmetic) and len(stack) > 1:
            b, a = stack.pop(), stack.pop()
            stack.append(arithmetic[code - 2](a, b))
        else:
            return None
    return stack[0] if len(stack) == 1 else None


Rule = Callable[["FunctionWalk", int, "list[Arg]", State], Value]
RULES: dict[str, Rule] = {}  # builtin -> what it returns for the walk, the instruction, its operands and the state


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def enter(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return enter


@_rule("vm.builtin.alloc_shape_heap")
def _alloc_shape_heap(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    return HeapValue(site=pc)


@_rule("vm.builtin.check_tensor_info")
def _check_tensor_info(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    value = args[0].value
    ndim = _number(args[1])
    dtype = args[2].value.text if len(args) == 4 and isinstance(args[2].value, TextValue) else None
    shape: Dims | None = None
    if isinstance(value, TensorValue):
        shape, dtype = value.shape, dtype or value.dtype
    if isinstance(ndim, int) and 0 <= ndim <= _MAX_RANK and (shape is None or len(shape) != ndim):
        shape = (None,) * ndim
    constant = value.constant if isinstance(value, TensorValue) else None
    _refine(walk, args[0], traced(TensorValue(shape=shape, dtype=dtype, constant=constant), value), state)
    return NONE


@_rule("vm.builtin.check_shape_info")
def _check_shape_info(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    ndim = _number(args[1])
    known = args[0].value
    if isinstance(ndim, int) and 0 <= ndim <= _MAX_RANK and not (isinstance(known, ShapeValue) and known.dims):
        _refine(walk, args[0], traced(ShapeValue(dims=(None,) * ndim), known), state)
    return NONE


@_rule("vm.builtin.check_prim_value_info")
def _check_prim_value_info(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    if not isinstance(args[0].value, ScalarValue):
        _refine(walk, args[0], traced(ScalarValue(), args[0].value), state)
    return NONE


@_rule("vm.builtin.check_tuple_info")
def _check_tuple_info(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    n = _number(args[1])
    value = args[0].value
    if isinstance(n, int) and 0 <= n <= 1024 and not isinstance(value, TupleValue):
        fields = tuple(traced(UNKNOWN, value) for _ in range(n))
        _refine(walk, args[0], traced(TupleValue(fields=fields), value), state)
    return NONE


@_rule(
    "vm.builtin.check_func_info",
    "vm.builtin.check_string_info",
    "vm.builtin.null_value",
    "pyvm.builtin.check_upper_bound",
)
def _nothing(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    return NONE


@_rule("vm.builtin.match_shape")
def _match_shape(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    value, n = args[0].value, _int(args[2])
    if not 0 <= n <= _MAX_DIMS or len(args) != 4 + 2 * n:
        return NONE
    dims: list[Size] = [None] * n
    if isinstance(value, TensorValue) and value.shape is not None and len(value.shape) == n:
        dims = list(value.shape)
    elif isinstance(value, ShapeValue) and value.dims is not None and len(value.dims) == n:
        dims = list(value.dims)
    names = _names_of_dims(args[-1].value, n)
    heap = _heap(args[1])
    for i in range(n):
        code, operand = _int(args[3 + 2 * i]), _int(args[4 + 2 * i])
        if code == 0:
            dims[i] = operand
        elif code == 1:
            known = dims[i]
            if known is None:
                name = names[i] if names is not None and names[i].isidentifier() else f"d{pc}_{i}"
                known = dims[i] = symbol(name)
            if heap is not None:
                state.heap[heap, operand] = known
        elif code == 3 and heap is not None and (heap, operand) in state.heap:
            stored = state.heap[heap, operand]
            # A plain name says more than what it was computed from; a number says most.
            if (
                dims[i] is None
                or isinstance(stored, int)
                or (isinstance(stored, SymVar) and not isinstance(dims[i], int))
            ):
                dims[i] = stored
    if isinstance(value, ShapeValue):
        _refine(walk, args[0], replace(value, dims=tuple(dims)), state)
    elif isinstance(value, TensorValue):
        _refine(walk, args[0], replace(value, shape=tuple(dims)), state)
    return NONE


@_rule("vm.builtin.match_prim_value")
def _match_prim_value(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    code, operand = _int(args[2]), _int(args[3])
    heap = _heap(args[1])
    number = _number(args[0])
    if code == 0:
        _refine(walk, args[0], traced(ScalarValue(number=operand), args[0].value), state)
    elif code == 1 and heap is not None:
        if number is None:
            number = symbol(_register_name(walk, args[0], f"v{pc}"), nonnegative=False)
            _refine(walk, args[0], traced(ScalarValue(number=number), args[0].value), state)
        state.heap[heap, operand] = number
    elif code == 3 and heap is not None and (heap, operand) in state.heap and number is None:
        _refine(walk, args[0], traced(ScalarValue(number=state.heap[heap, operand]), args[0].value), state)
    return NONE


@_rule("vm.builtin.make_shape")
def _make_shape(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    n, heap = _int(args[1]), _heap(args[0])
    if not 0 <= n <= 1024 or len(args) < 2 + 2 * n:
        return ShapeValue()
    return ShapeValue(dims=tuple(_cell(args[2 + 2 * i], args[3 + 2 * i], heap, state) for i in range(n)))


@_rule("vm.builtin.make_prim_value")
def _make_prim_value(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    return ScalarValue(number=_cell(args[1], args[2], _heap(args[0]), state))


@_rule("vm.builtin.shape_of")
def _shape_of(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    value = args[0].value
    return ShapeValue(dims=value.shape if isinstance(value, TensorValue) else None)


@_rule("vm.builtin.tensor_to_shape")
def _tensor_to_shape(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    value = args[0].value
    if not isinstance(value, TensorValue) or value.shape is None or len(value.shape) != 1:
        return ShapeValue()
    n = value.shape[0]
    if value.constant is not None:
        data = walk.program.executable.constants[value.constant]
        if isinstance(data, np.ndarray) and data.size <= _MAX_RANK and data.dtype.kind in "iu":
            return ShapeValue(dims=tuple(int(d) for d in data))
    return ShapeValue(dims=(None,) * n if isinstance(n, int) and 0 <= n <= _MAX_RANK else None)


@_rule("pyvm.builtin.shape_to_tensor")
def _shape_to_tensor(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    value = args[0].value
    n = len(value.dims) if isinstance(value, ShapeValue) and value.dims is not None else None
    return TensorValue(origins=frozenset((pc,)), shape=(n,), dtype="int64")


@_rule("pyvm.builtin.plan_arena")
def _plan_arena(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    table = args[0].value
    if not isinstance(table, ShapeValue) or table.dims is None or len(table.dims) > 3 * _MAX_DIMS:
        return ShapeValue()
    n = len(table.dims) // 3
    if walk.recording:
        words = tuple(word for word in table.dims if isinstance(word, int))
        walk.facts.plans[pc] = words, [_number(arg) for arg in args[1:]]
    return ShapeValue(dims=tuple(symbol(name) for name in names_of_plan(pc, n)))


@_rule("vm.builtin.alloc_storage")
def _alloc_storage(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    if walk.recording:
        shape, dtype = args[1].value, args[3].value
        size = element_bytes(dtype.text) if isinstance(dtype, TextValue) else None
        nbytes = sizes.mul(*shape.dims, size) if isinstance(shape, ShapeValue) and shape.dims is not None else None
        walk.facts.storages[pc] = nbytes
    return StorageValue(storages=frozenset((pc,)))


@_rule("vm.builtin.alloc_tensor")
def _alloc_tensor(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    storage, shape, dtype = args[0].value, args[2].value, args[3].value
    dims = shape.dims if isinstance(shape, ShapeValue) else None
    text = dtype.text if isinstance(dtype, TextValue) else None
    value = TensorValue(frozenset((pc,)), storage.storages, shape=dims, dtype=text)
    state.writers.pop(pc, None)
    if walk.recording:
        walk.facts.allocations[pc] = storage.storages, _number(args[1]), value
    return value


@_rule("vm.builtin.copy", "vm.builtin.ensure_zero_offset")
def _copy(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    return args[0].value


@_rule("vm.builtin.reshape")
def _reshape(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    value, shape = args[0].value, args[1].value
    dims = shape.dims if isinstance(shape, ShapeValue) else None
    dtype = value.dtype if isinstance(value, TensorValue) else None
    return traced(TensorValue(shape=dims, dtype=dtype), value)


@_rule("vm.builtin.to_device")
def _to_device(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    value = args[0].value
    if not isinstance(value, TensorValue):
        return UNKNOWN
    return TensorValue(origins=frozenset((pc,)), shape=value.shape, dtype=value.dtype)


@_rule("vm.builtin.make_tuple")
def _make_tuple(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    return tuple_of(tuple(arg.value for arg in args))


@_rule("vm.builtin.tuple_getitem")
def _tuple_getitem(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    value, index = args[0].value, _number(args[1])
    if isinstance(value, TupleValue) and isinstance(index, int) and 0 <= index < len(value.fields):
        return value.fields[index]
    return traced(UNKNOWN, value)


@_rule("vm.builtin.tuple_reset_item")
def _tuple_reset_item(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    value, index = args[0].value, _number(args[1])
    if isinstance(value, TupleValue) and isinstance(index, int) and 0 <= index < len(value.fields):
        fields = (*value.fields[:index], NONE, *value.fields[index + 1 :])
        _refine(walk, args[0], replace(value, fields=fields), state)
    return NONE


@_rule("vm.builtin.read_if_cond")
def _read_if_cond(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    return ScalarValue(origins=frozenset((pc,)))


@_rule("vm.builtin.make_closure")
def _make_closure(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    memory = made_of(arg.value for arg in args)
    function = args[0].value
    if not isinstance(function, FunctionValue) or len(function.saved) + len(args) > 64:
        return memory
    saved = (*(arg.value for arg in args[1:]), *function.saved)
    if _nesting(saved) > 8:
        return memory
    return traced(FunctionValue(name=function.name, saved=saved), memory)


@_rule("vm.builtin.invoke_closure")
def _invoke_closure(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    function = args[1].value
    values = [arg.value for arg in args[2:]]
    if not isinstance(function, FunctionValue):
        return walk.taken(pc, UNKNOWN, [function, *values])
    result = walk.program.result_of_call(function.name, [*values, *function.saved])
    return walk.taken(pc, result, [function, *values])


@_rule("pyvm.builtin.eval_shape_expr")
def _eval_shape_expr(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    heap, slot, program = _heap(args[0]), _int(args[1]), args[2].value
    if heap is None:
        return NONE
    value = None
    if isinstance(program, ShapeValue) and program.dims is not None:
        value = _evaluate_postfix(program.dims, lambda cell: state.heap.get((heap, cell)))
    _store(walk, heap, slot, value, pc, state)
    return NONE


@_rule("pyvm.builtin.store_dim")
def _store_dim(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    heap, slot = _heap(args[0]), _int(args[1])
    if heap is not None:
        _store(walk, heap, slot, _number(args[2]), pc, state)
    return NONE


@_rule("pyvm.builtin.tensor_scalar")
def _tensor_scalar(walk: FunctionWalk, pc: int, args: list[Arg], state: State) -> Value:
    value = args[0].value
    if isinstance(value, TensorValue) and value.constant is not None:
        data = walk.program.executable.constants[value.constant]
        if isinstance(data, np.ndarray) and data.size == 1 and data.dtype.kind in "iu":
            return ScalarValue(number=int(data.reshape(-1)[0]))
    return ScalarValue(origins=frozenset((pc,)), number=symbol(f"v{pc}", nonnegative=False))
