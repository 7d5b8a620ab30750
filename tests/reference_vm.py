"""The semantics of the virtual machine in plain Python: the oracle for the dispatch loop.

Values are Python objects: None, bool, int, float, str, DataType, Shape, list (an Array, mutable in place), numpy array
and callables. A tensor made by `alloc_tensor` is a view of its storage, a flat uint8 array. `functions` maps names to
Python callables; kernels write into their last arguments. Calls of VM functions use the Python stack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pyvm.executable import PACKED_FUNC, VMExecutable
from vmcore.isa import VM_REGISTER, VOID_REGISTER, ArgKind, Opcode, unpack_arg
from vmcore.types import DataType, Shape

VM = object()  # what %vm reads as


class Closure:
    """A VM function with arguments to append."""

    def __init__(self, call: Callable[..., Any], saved: tuple[Any, ...] = ()) -> None:
        self.call, self.saved = call, saved

    def __call__(self, *args: Any) -> Any:
        return self.call(*args, *self.saved)


def to_value(x: Any) -> Any:
    """A Python argument as a value: tuples become Arrays."""
    return [to_value(item) for item in x] if isinstance(x, (tuple, list)) and not isinstance(x, Shape) else x


def from_value(x: Any) -> Any:
    """A value as a Python result: Arrays become tuples."""
    return tuple(from_value(item) for item in x) if isinstance(x, list) else x


def run(executable: VMExecutable, name: str, args: Any = (), functions: Mapping[str, Callable[..., Any]] = {}) -> Any:  # noqa: B006
    """Calls function `name` of a verified executable."""
    machine = Machine(executable, functions)
    return from_value(machine.pool[executable.function_index(name)](*map(to_value, args)))


class Machine:
    """A linked executable: one callable per function table entry."""

    def __init__(self, executable: VMExecutable, functions: Mapping[str, Callable[..., Any]]) -> None:
        self.executable = executable
        self.pool: list[Callable[..., Any]] = []
        for info in executable.functions:
            if info.kind == PACKED_FUNC:
                self.pool.append(functions[info.name] if info.name in functions else BUILTINS[info.name])
            else:
                self.pool.append(Closure(lambda *args, info=info: self.call(info, args)))

    def read(self, registers: list[Any], word: int) -> Any:
        kind, value = unpack_arg(word)
        if kind == ArgKind.ARG_REGISTER:
            return {VOID_REGISTER: None, VM_REGISTER: VM}[value] if value >= VOID_REGISTER else registers[value]
        if kind == ArgKind.ARG_IMMEDIATE:
            return value
        return self.executable.constants[value] if kind == ArgKind.ARG_CONSTANT else self.pool[value]

    def call(self, info: Any, args: tuple[Any, ...]) -> Any:
        if len(args) != info.num_args:
            raise TypeError(f"{info.name} takes {info.num_args} arguments, {len(args)} were given")
        registers = [*args] + [None] * (info.register_file_size - len(args))
        pc = info.start_instr
        while True:
            words = self.executable.instr_data[int(self.executable.instr_offset[pc]) :]
            op = words[0]
            if op == Opcode.OP_CALL:
                dst, func, n = (int(w) for w in words[1:4])
                result = self.pool[func](*[self.read(registers, int(w)) for w in words[4 : 4 + n]])
                if dst < VOID_REGISTER:
                    registers[dst] = result
                pc += 1
            elif op == Opcode.OP_RET:
                return self.read(registers, int(words[1]))
            elif op == Opcode.OP_GOTO:
                pc += int(words[1])
            else:
                condition = registers[int(words[1])]
                if not isinstance(condition, int):
                    raise TypeError(f"the condition is a {type(condition).__name__}, not an int or bool")
                pc += 1 if condition else int(words[2])


BUILTINS: dict[str, Callable[..., Any]] = {}


def builtin(f: Callable[..., Any]) -> Callable[..., Any]:
    """Enters `f` as vm.builtin.<its name>."""
    BUILTINS[f"vm.builtin.{f.__name__}"] = f
    return f


def require(condition: bool, error: type[Exception], message: str) -> None:
    if not condition:
        raise error(message)


@builtin
def copy(x):
    return x


@builtin
def null_value():
    return None


@builtin
def make_tuple(*items):
    return list(items)


@builtin
def tuple_getitem(array, index):
    require(isinstance(array, list), TypeError, "tuple_getitem: not an array")
    require(0 <= index < len(array), IndexError, f"tuple_getitem: {index} is not in 0..{len(array) - 1}")
    return array[index]


@builtin
def tuple_reset_item(array, index):
    require(isinstance(array, list), TypeError, "tuple_reset_item: not an array")
    tuple_getitem(array, index)
    array[index] = None


@builtin
def shape_of(x):
    require(isinstance(x, np.ndarray), TypeError, "shape_of: not a tensor")
    return Shape(x.shape)


@builtin
def tensor_to_shape(x):
    integers = x.dtype.name in ("int16", "int32", "int64")
    require(x.ndim == 1 and integers, RuntimeError, f"tensor_to_shape: {x.shape} {x.dtype}")
    return Shape(x.tolist())


@builtin
def alloc_storage(vm, shape, device, dtype, scope="global"):
    require(all(d >= 0 for d in shape), ValueError, f"alloc_storage: {shape}")
    return np.zeros(math.prod(shape) * DataType(dtype).itemsize, np.uint8)


@builtin
def alloc_tensor(storage, offset, shape, dtype, scope="global"):
    require(all(d >= 0 for d in shape) and offset >= 0, ValueError, f"alloc_tensor: {shape} at {offset}")
    nbytes = math.prod(shape) * DataType(dtype).itemsize
    require(offset + nbytes <= storage.nbytes, RuntimeError, f"alloc_tensor: {offset} + {nbytes} > {storage.nbytes}")
    return storage[offset : offset + nbytes].view(DataType(dtype).numpy).reshape(shape)


@builtin
def reshape(x, shape):
    require(isinstance(x, np.ndarray), TypeError, "reshape: not a tensor")
    require(isinstance(shape, (Shape, list)), TypeError, "reshape: not a shape")
    require(all(type(d) is int for d in shape), TypeError, f"reshape: {shape}")
    require(all(d >= 0 for d in shape), ValueError, f"reshape: {shape}")
    require(math.prod(shape) <= x.size, ValueError, f"reshape: {x.shape} to {shape}")
    return x.reshape(-1)[: math.prod(shape)].reshape(tuple(shape))


@builtin
def alloc_shape_heap(vm, n):
    require(n >= 0, ValueError, f"alloc_shape_heap: {n}")
    return np.zeros(n, np.int64)


def slot(heap, index):
    require(isinstance(heap, np.ndarray) and 0 <= index < len(heap), IndexError, f"shape heap: no slot {index}")
    return index


def load(heap, code, operand):
    require(code in (0, 1), ValueError, f"shape code {code}")
    return operand if code == 0 else int(heap[slot(heap, operand)])


def match(heap, value, code, operand, where):
    if code == 1:
        heap[slot(heap, operand)] = value
    elif code != 2:
        require(code in (0, 3), ValueError, f"shape code {code}")
        expected = operand if code == 0 else int(heap[slot(heap, operand)])
        require(value == expected, ValueError, f"{where}match_cast error: {value} is not {expected}")


@builtin
def match_shape(x, heap, n, *rest):
    dims, where = x if isinstance(x, (Shape, tuple, list)) else x.shape, rest[2 * n] or ""
    require(len(dims) == n, ValueError, f"{where}match_cast shape size mismatch.")
    for i, dim in enumerate(dims):
        match(heap, dim, rest[2 * i], rest[2 * i + 1], where)


@builtin
def match_prim_value(value, heap, code, operand, where):
    require(isinstance(value, int), TypeError, "match_prim_value: not an int")
    match(heap, int(value), code, operand, where or "")


@builtin
def make_shape(heap, n, *rest):
    return Shape(load(heap, rest[2 * i], rest[2 * i + 1]) for i in range(n))


@builtin
def make_prim_value(heap, code, operand):
    return load(heap, code, operand)


@builtin
def check_tensor_info(x, ndim, *rest):
    dtype, where = rest if len(rest) == 2 else (None, rest[0])
    require(isinstance(x, np.ndarray), TypeError, f"{where}expect a Tensor")
    require(ndim in (-1, x.ndim), ValueError, f"{where}expect {ndim} dims, got {x.ndim}")
    require(dtype is None or dtype == DataType(x.dtype), ValueError, f"{where}expect {dtype}, got {x.dtype}")


@builtin
def check_shape_info(x, ndim, where):
    require(isinstance(x, Shape), TypeError, f"{where}expect a Shape")
    require(ndim in (-1, len(x)), ValueError, f"{where}expect {ndim} dims, got {len(x)}")


@builtin
def check_prim_value_info(x, dtype, where):
    kinds = {"float": (float, int), "int": (int,), "uint": (int,), "bool": (int,)}
    require(isinstance(x, kinds.get(str(dtype).rstrip("0123456789"), object)), TypeError, f"{where}expect {dtype}")


@builtin
def check_tuple_info(x, n, where):
    require(isinstance(x, list), TypeError, f"{where}expect an Array")
    require(len(x) == n, ValueError, f"{where}expect {n} items, got {len(x)}")


@builtin
def check_func_info(x, where):
    require(callable(x), TypeError, f"{where}expect a Function")


@builtin
def check_string_info(x, where):
    require(isinstance(x, str), TypeError, f"{where}expect a string")


@builtin
def read_if_cond(x):
    if isinstance(x, np.ndarray):
        require(x.dtype.kind in "iub" and x.size > 0, RuntimeError, f"read_if_cond: {x.dtype}")
        return bool(x.reshape(-1)[0])
    require(isinstance(x, int), TypeError, f"read_if_cond: {type(x).__name__}")
    return bool(x)


@builtin
def make_closure(f, *saved):
    require(isinstance(f, Closure), TypeError, "make_closure: not a VM function")
    return Closure(f, saved)


@builtin
def invoke_closure(vm, f, *args):
    require(callable(f), TypeError, "invoke_closure: not a function")
    return f(*args)


@builtin
def call_tir_dyn(f, *args):
    return f(*args[:-1], *args[-1])


@builtin
def to_device(x, device_type, device_id, scope="global"):
    require((device_type, device_id) == (1, 0), RuntimeError, f"to_device: {device_type}, {device_id}")
    return x.copy()


@builtin
def ensure_zero_offset(x):
    return x


def eval_shape_expr(heap, dst, program):
    """Postfix (opcode, operand) pairs: 0 push, 1 push heap[operand], then + - * // % min max."""
    stack: list[int] = []
    operators = (int.__add__, int.__sub__, int.__mul__, int.__floordiv__, int.__mod__, min, max)
    for op, operand in zip(program[::2], program[1::2], strict=True):
        if op < 2:
            stack.append(load(heap, op, operand))
        else:
            right, left = stack.pop(), stack.pop()
            require(op not in (5, 6) or right != 0, ValueError, "eval_shape_expr: division by zero")
            stack.append(operators[op - 2](left, right))
    (heap[slot(heap, dst)],) = stack


def tensor_scalar(x):
    require(x.size == 1 and x.dtype.kind in "iub", ValueError, f"tensor_scalar: {x.shape} {x.dtype}")
    return int(x.reshape(-1)[0])


def plan_arena(table, *sizes):
    """The lowest place for each buffer, in order, where it meets none that is needed at the same time."""
    placed: list[tuple[int, int, int, int]] = []
    for begin, end, which in zip(table[::3], table[1::3], table[2::3], strict=True):
        require(0 <= which < len(sizes), IndexError, f"plan_arena: size {which} of {len(sizes)}")
        size = -(-max(sizes[which], 0) // 64) * 64
        rivals = [(low, high) for first, last, low, high in placed if first <= end and last >= begin]
        starts = sorted({0, *(high for _, high in rivals)})
        low = next(s for s in starts if all(s + size <= b or e <= s for b, e in rivals))
        placed.append((begin, end, low, low + size))
    return Shape([max((high for *_, high in placed), default=0), *(low for _, _, low, _ in placed)])


def check_upper_bound(heap, index, bound, name, context):
    value = heap[slot(heap, index)]
    require(value <= bound, ValueError, f"{context}{name} is {value}, above its declared upper bound of {bound}")


def stack_push(stack, count, row, limit, certain):
    require(stack.ndim and count.size == 1 and 0 <= int(count.reshape(-1)[0]) <= len(stack), IndexError, "stack_push")
    same = stack.shape[1:] == row.shape and stack.dtype == row.dtype
    require(same, ValueError, f"stack_push: {row.shape} is no row of {stack.shape}")
    return np.concatenate([stack[: int(count.reshape(-1)[0])], row[None]])


def stack_rows(stack, count, reverse):
    require(stack.ndim and 0 <= int(count.reshape(-1)[0]) <= len(stack), IndexError, "stack_rows")
    rows = stack[: int(count.reshape(-1)[0])]
    return np.ascontiguousarray(rows[::-1]) if reverse else rows


def store_dim(heap, index, value):
    heap[slot(heap, index)] = value


BUILTINS.update(
    {
        "pyvm.builtin.eval_shape_expr": eval_shape_expr,
        "pyvm.builtin.plan_arena": plan_arena,
        "pyvm.builtin.check_upper_bound": check_upper_bound,
        "pyvm.builtin.stack_push": stack_push,
        "pyvm.builtin.stack_rows": stack_rows,
        "pyvm.builtin.tensor_scalar": tensor_scalar,
        "pyvm.builtin.store_dim": store_dim,
        "pyvm.builtin.shape_to_tensor": lambda shape: np.array(shape, np.int64),
    }
)
