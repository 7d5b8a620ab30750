"""The programs of the comparison: assembler text, function, arguments; `Shape` arguments as ("shape", dims)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    program: str
    args: tuple[Any, ...] = ()
    function: str = "main"


def one(call: str, *args: Any) -> Case:
    """A function that makes one call and returns its result."""
    params = ", ".join(f"%{i}" for i in range(len(args)))
    n = len(args)
    return Case(f"func @main({params}) regs={n + 1}\n  call @{call} -> %{n}\n  ret %{n}", args)


def after(first: str, call: str, *args: Any, result: str = "last") -> Case:
    """Like `one`, with a call before it whose result is the register after the parameters."""
    params = ", ".join(f"%{i}" for i in range(len(args)))
    n = len(args)
    last = n if result == "first" else n + 1
    return Case(
        f"func @main({params}) regs={n + 2}\n  call @{first} -> %{n}\n  call @{call} -> %{n + 1}\n  ret %{last}", args
    )


def floats(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def shape(*dims: int) -> tuple[str, tuple[int, ...]]:
    return ("shape", dims)


STORAGE = 'vm.builtin.alloc_storage (%vm, shape(64), 0, dtype(uint8), "global")'
HEAP = "vm.builtin.alloc_shape_heap (%vm, 4)"
WHERE = '"ErrorContext(fn=main, loc=param[0], param=x, annotation=R.Tensor) "'

BUILTINS = {
    "copy int": one("vm.builtin.copy (%0)", 3),
    "copy tensor": one("vm.builtin.copy (%0)", floats(2, 3)),
    "copy text": one("vm.builtin.copy (%0)", "hello, this is a longer text"),
    "copy shape": one("vm.builtin.copy (%0)", shape(3, 4)),
    "copy constants": one('vm.builtin.make_tuple (1, "a", shape(1, 2), dtype(float32), 0.5, %void)'),
    "copy two": one("vm.builtin.copy (%0, %0)", 3),
    "null_value": one("vm.builtin.null_value ()"),
    "null_value one": one("vm.builtin.null_value (1)"),
    "make_tuple empty": one("vm.builtin.make_tuple ()"),
    "make_tuple nested": after("vm.builtin.make_tuple (%0, 2)", "vm.builtin.make_tuple (%1, %0)", floats(2)),
    "tuple_getitem": one("vm.builtin.tuple_getitem (%0, 1)", (1, "b", None)),
    "tuple_getitem register": one("vm.builtin.tuple_getitem (%0, %1)", (1, "b", None), 2),
    "tuple_getitem high": one("vm.builtin.tuple_getitem (%0, 3)", (1, "b", None)),
    "tuple_getitem negative": one("vm.builtin.tuple_getitem (%0, -1)", (1, "b", None)),
    "tuple_getitem int": one("vm.builtin.tuple_getitem (%0, 0)", 3),
    "tuple_getitem shape": one("vm.builtin.tuple_getitem (%0, 0)", shape(3)),
    "tuple_reset_item": after(
        "vm.builtin.make_tuple (%0, 2)", "vm.builtin.tuple_reset_item (%1, 0)", floats(2), result="first"
    ),
    "tuple_reset_item high": after("vm.builtin.make_tuple (%0, 2)", "vm.builtin.tuple_reset_item (%1, 2)", 1),
    "tuple_reset_item int": one("vm.builtin.tuple_reset_item (%0, 2)", 1),
    "shape_of": one("vm.builtin.shape_of (%0)", floats(2, 3)),
    "shape_of int": one("vm.builtin.shape_of (%0)", 3),
    "tensor_to_shape int64": one("vm.builtin.tensor_to_shape (%0)", np.array([2, 3], np.int64)),
    "tensor_to_shape int32": one("vm.builtin.tensor_to_shape (%0)", np.array([2, 3], np.int32)),
    "tensor_to_shape int16": one("vm.builtin.tensor_to_shape (%0)", np.array([2, 3], np.int16)),
    "tensor_to_shape int8": one("vm.builtin.tensor_to_shape (%0)", np.array([2, 3], np.int8)),
    "tensor_to_shape uint8": one("vm.builtin.tensor_to_shape (%0)", np.array([2, 3], np.uint8)),
    "tensor_to_shape float": one("vm.builtin.tensor_to_shape (%0)", floats(2)),
    "tensor_to_shape 2-d": one("vm.builtin.tensor_to_shape (%0)", np.array([[2, 3]], np.int64)),
    "tensor_to_shape int": one("vm.builtin.tensor_to_shape (%0)", 2),
    "reshape": one("vm.builtin.reshape (%0, shape(3, 2))", floats(2, 3)),
    "reshape tuple": one("vm.builtin.reshape (%0, %1)", floats(2, 3), (6,)),
    "reshape smaller": one("vm.builtin.reshape (%0, shape(2))", floats(2, 3)),
    "reshape larger": one("vm.builtin.reshape (%0, shape(7))", floats(2, 3)),
    "reshape negative": one("vm.builtin.reshape (%0, shape(-1, 2))", floats(2, 3)),
    "reshape int": one("vm.builtin.reshape (%0, shape(2))", 3),
    "reshape to int": one("vm.builtin.reshape (%0, 6)", floats(2, 3)),
    "alloc_tensor": after(STORAGE, "vm.builtin.shape_of (%0)"),
    "alloc_tensor dims": Case(
        f"func @main() regs=3\n  call @{STORAGE} -> %0\n"
        "  call @vm.builtin.alloc_tensor (%0, 0, shape(2, 8), dtype(float32)) -> %1\n"
        "  call @vm.builtin.shape_of (%1) -> %2\n  ret %2"
    ),
    "alloc_tensor too big": after(STORAGE, "vm.builtin.alloc_tensor (%0, 0, shape(1025, 8), dtype(float32))"),
    "alloc_tensor negative": after(STORAGE, "vm.builtin.alloc_tensor (%0, 0, shape(-1), dtype(float32))"),
    "alloc_tensor of int": one("vm.builtin.alloc_tensor (%0, 0, shape(1), dtype(float32))", 1),
    "alloc_storage device": one('vm.builtin.alloc_storage (%vm, shape(64), 1, dtype(uint8), "global")'),
    "alloc_storage device -1": one('vm.builtin.alloc_storage (%vm, shape(64), -1, dtype(uint8), "global")'),
    "alloc_storage of int": one('vm.builtin.alloc_storage (%vm, 64, 0, dtype(uint8), "global")'),
    "alloc_storage without vm": one('vm.builtin.alloc_storage (1, shape(64), 0, dtype(uint8), "global")'),
    "make_shape": one("vm.builtin.make_shape (%void, 2, 0, 3, 0, 4)"),
    "make_shape heap": Case(
        f"func @main(%0) regs=3\n  call @{HEAP} -> %1\n"
        f"  call @vm.builtin.match_shape (%0, %1, 2, 1, 3, 1, 0, {WHERE})\n"
        "  call @vm.builtin.make_shape (%1, 3, 1, 0, 0, 7, 1, 3) -> %2\n  ret %2",
        (floats(2, 5),),
    ),
    "make_shape code": one("vm.builtin.make_shape (%void, 1, 2, 3)"),
    "make_shape arity": one("vm.builtin.make_shape (%void, 2, 0, 3)"),
    "make_prim_value": after(HEAP, "vm.builtin.make_prim_value (%0, 0, 9)"),
    "make_prim_value code": after(HEAP, "vm.builtin.make_prim_value (%0, 5, 9)"),
    "match_prim_value": after(HEAP, "vm.builtin.match_prim_value (%0, %1, 0, 4, %void)", 4),
    "match_prim_value differs": after(HEAP, "vm.builtin.match_prim_value (%0, %1, 0, 4, %void)", 5),
    "match_prim_value differs, context": after(HEAP, f"vm.builtin.match_prim_value (%0, %1, 0, 4, {WHERE})", 5),
    "match_prim_value text": after(HEAP, "vm.builtin.match_prim_value (%0, %1, 0, 4, %void)", "4"),
    "match_prim_value code": after(HEAP, "vm.builtin.match_prim_value (%0, %1, 7, 4, %void)", 4),
    "read_if_cond int": one("vm.builtin.read_if_cond (%0)", 5),
    "read_if_cond bool": one("vm.builtin.read_if_cond (%0)", False),
    "read_if_cond float": one("vm.builtin.read_if_cond (%0)", 0.5),
    "read_if_cond text": one("vm.builtin.read_if_cond (%0)", "x"),
    "read_if_cond float tensor": one("vm.builtin.read_if_cond (%0)", np.array(1.0, np.float32)),
    "read_if_cond long": one("vm.builtin.read_if_cond (%0)", np.array([0, 1, 1], np.int64)),
    "make_closure packed": one("vm.builtin.make_closure (@parity.identity, 1)"),
    "make_closure int": one("vm.builtin.make_closure (1, 1)"),
    "invoke_closure packed": one("vm.builtin.invoke_closure (%vm, @parity.add, %0, 2)", 1),
    "invoke_closure int": one("vm.builtin.invoke_closure (%vm, %0)", 1),
    "call_tir_dyn": one("vm.builtin.call_tir_dyn (@parity.count, %0, shape(3, 4))", floats(2)),
    "call_tir_dyn no shape": one("vm.builtin.call_tir_dyn (@parity.count, %0, %0)", floats(2)),
    "call_tir_dyn int": one("vm.builtin.call_tir_dyn (3, %0, shape(2))", floats(2)),
    "to_device": one("vm.builtin.to_device (%0, 1, 0)", floats(2)),
    "to_device scope": one('vm.builtin.to_device (%0, 1, 0, "global")', floats(2)),
    "to_device other": one("vm.builtin.to_device (%0, 99, 0)", floats(2)),
    "to_device int": one("vm.builtin.to_device (%0, 1, 0)", 2),
    "ensure_zero_offset": one("vm.builtin.ensure_zero_offset (%0)", floats(2)),
    "ensure_zero_offset int": one("vm.builtin.ensure_zero_offset (%0)", 2),
    "invoke_debug_func": one('vm.builtin.invoke_debug_func (%0, "parity.debug", "file.py:1", %1, 2)', None, floats(2)),
    "invoke_debug_func no args": one('vm.builtin.invoke_debug_func (%0, "parity.debug", "file.py:1")', None),
    "invoke_debug_func effect": one('vm.builtin.invoke_debug_func (%0, "parity.debug", "file.py:1")', 7),
    "invoke_debug_func object": one('vm.builtin.invoke_debug_func (%0, "parity.debug", "file.py:1")', (1,)),
    "invoke_debug_func unknown": one('vm.builtin.invoke_debug_func (%0, "parity.nobody", "file.py:1", 1)', None),
    "invoke_debug_func short": one('vm.builtin.invoke_debug_func (%0, "parity.debug")', None),
    "invoke_debug_func name": one('vm.builtin.invoke_debug_func (%0, 3, "file.py:1")', None),
    "invoke_debug_func fails": one('vm.builtin.invoke_debug_func (%0, "parity.fail", "file.py:1", 1)', None),
    "register_py_func": after(
        'vm.builtin.register_py_func ("parity_f", @parity.count)', 'vm.builtin.get_py_func ("parity_f")'
    ),
    "call_py_func": Case(
        'func @main(%0) regs=4\n  call @vm.builtin.register_py_func ("parity_f", @parity.count)\n'
        '  call @vm.builtin.make_tuple (%0, 1) -> %1\n  call @vm.builtin.make_tuple ("parity_f", %1) -> %2\n'
        "  call @vm.builtin.call_py_func (%2) -> %3\n  ret %3",
        (floats(2),),
    ),
    "call_py_func unknown": after(
        'vm.builtin.make_tuple ("parity_nobody", %0)', "vm.builtin.call_py_func (%1)", (1, 2)
    ),
    "call_py_func bare": one('vm.builtin.call_py_func ("parity_f", 1)'),
    "call_py_func no tuple": one('vm.builtin.call_py_func ("parity_f")'),
    "call_py_func short tuple": one("vm.builtin.call_py_func (%0)", ("parity_f",)),
    "call_py_func args": one("vm.builtin.call_py_func (%0)", ("parity_f", 3)),
    "call_py_func name": one("vm.builtin.call_py_func (%0)", (3, (3,))),
    "get_py_func unknown": one('vm.builtin.get_py_func ("parity_nobody")'),
    "clear_py_func_registry": Case(
        'func @main() regs=2\n  call @vm.builtin.register_py_func ("parity_f", @parity.count)\n'
        '  call @vm.builtin.clear_py_func_registry ()\n  call @vm.builtin.get_py_func ("parity_f") -> %1\n  ret %1'
    ),
}
for bits in (8, 16, 32, 64):
    for kind in ("int", "uint"):
        for number in (0, 1):
            BUILTINS[f"read_if_cond {kind}{bits} {number}"] = one(
                "vm.builtin.read_if_cond (%0)", np.array(number, f"{kind}{bits}")
            )
BUILTINS["read_if_cond bool tensor"] = one("vm.builtin.read_if_cond (%0)", np.array(True))
for code in (0, 1, 2, 3):
    BUILTINS[f"match_shape code {code}"] = Case(
        f"func @main(%0) regs=3\n  call @{HEAP} -> %1\n  call @vm.builtin.match_shape (%0, %1, 1, 1, 2, {WHERE})\n"
        f"  call @vm.builtin.match_shape (%0, %1, 1, {code}, 2, {WHERE})\n"
        "  call @vm.builtin.make_prim_value (%1, 1, 2) -> %2\n  ret %2",
        (floats(2),),
    )
BUILTINS |= {
    "match_shape rank": one(f"vm.builtin.match_shape (%0, %void, 1, 0, 2, {WHERE})", floats(2, 3)),
    "match_shape differs": one(f"vm.builtin.match_shape (%0, %void, 2, 0, 2, 0, 4, {WHERE})", floats(2, 3)),
    "match_shape fits": one(f"vm.builtin.match_shape (%0, %void, 2, 0, 2, 0, 3, {WHERE})", floats(2, 3)),
    "match_shape of shape": one(f"vm.builtin.match_shape (%0, %void, 2, 0, 2, 2, 0, {WHERE})", shape(2, 3)),
    "match_shape of int": one(f"vm.builtin.match_shape (%0, %void, 2, 0, 2, 2, 0, {WHERE})", 3),
    "match_shape code": one(f"vm.builtin.match_shape (%0, %void, 1, 9, 2, {WHERE})", floats(2)),
    "match_shape arity": one(f"vm.builtin.match_shape (%0, %void, 2, 0, 2, {WHERE})", floats(2)),
    "match_shape no context": one("vm.builtin.match_shape (%0, %void, 1, 0, 2, %void)", floats(2)),
}
for text, value in {
    "int": 3, "bool": True, "float": 0.5, "text": "x", "tensor": floats(2), "shape": shape(2, 3), "tuple": (1, 2),
    "none": None,
}.items():  # fmt: skip
    BUILTINS |= {
        f"check_tensor_info {text}": one(f"vm.builtin.check_tensor_info (%0, 1, dtype(float32), {WHERE})", value),
        f"check_shape_info {text}": one(f"vm.builtin.check_shape_info (%0, 2, {WHERE})", value),
        f"check_tuple_info {text}": one(f"vm.builtin.check_tuple_info (%0, 2, {WHERE})", value),
        f"check_func_info {text}": one(f"vm.builtin.check_func_info (%0, {WHERE})", value),
        f"check_string_info {text}": one(f"vm.builtin.check_string_info (%0, {WHERE})", value),
    }
    for dtype in ("int64", "int32", "uint8", "float32", "float64", "bool"):
        BUILTINS[f"check_prim_value_info {dtype} {text}"] = one(
            f"vm.builtin.check_prim_value_info (%0, dtype({dtype}), {WHERE})", value
        )
BUILTINS |= {
    "check_tensor_info any": one(f"vm.builtin.check_tensor_info (%0, -1, {WHERE})", floats(2, 3)),
    "check_tensor_info no dtype": one(f"vm.builtin.check_tensor_info (%0, 2, %void, {WHERE})", floats(2, 3)),
    "check_tensor_info ndim": one(f"vm.builtin.check_tensor_info (%0, 1, dtype(float32), {WHERE})", floats(2, 3)),
    "check_tensor_info dtype": one(f"vm.builtin.check_tensor_info (%0, 2, dtype(int64), {WHERE})", floats(2, 3)),
    "check_tensor_info short": one("vm.builtin.check_tensor_info (%0, 2)", floats(2, 3)),
    "check_shape_info any": one(f"vm.builtin.check_shape_info (%0, -1, {WHERE})", shape(2, 3)),
    "check_shape_info length": one(f"vm.builtin.check_shape_info (%0, 3, {WHERE})", shape(2, 3)),
    "check_tuple_info length": one(f"vm.builtin.check_tuple_info (%0, 3, {WHERE})", (1, 2)),
    "check_func_info packed": one(f"vm.builtin.check_func_info (@parity.add, {WHERE})"),
    "check_func_info vm": one(f"vm.builtin.check_func_info (@main, {WHERE})"),
}

# What stands for a data type or a shape: the name of one, a tuple of ints.
BUILTINS |= {
    "check_tensor_info name": one(f'vm.builtin.check_tensor_info (%0, 1, "float32", {WHERE})', floats(2)),
    "check_tensor_info other name": one(f'vm.builtin.check_tensor_info (%0, 1, "int32", {WHERE})', floats(2)),
    "check_tensor_info no name": one(f'vm.builtin.check_tensor_info (%0, 1, "", {WHERE})', floats(2)),
    "check_prim_value_info name": one(f'vm.builtin.check_prim_value_info (%0, "int64", {WHERE})', 1),
    "check_tuple_info any": one(f"vm.builtin.check_tuple_info (%0, -1, {WHERE})", (1,)),
    "match_shape of tuple": one(f"vm.builtin.match_shape (%0, %void, 2, 0, 2, 2, 0, {WHERE})", (2, 3)),
    "reshape tuple of text": one("vm.builtin.reshape (%0, %1)", floats(6), ("a",)),
    "call_tir_dyn tuple": one("vm.builtin.call_tir_dyn (@parity.count, %0)", (1, 2)),
    "alloc_storage name": after(
        'vm.builtin.alloc_storage (%vm, shape(64), 0, "uint8", "global")', "vm.builtin.copy (1)"
    ),
    "alloc_storage scope": one('vm.builtin.alloc_storage (%vm, shape(64), 0, dtype(uint8), "texture")'),
    "alloc_tensor tuple": Case(
        f"func @main(%0) regs=4\n  call @{STORAGE} -> %1\n"
        '  call @vm.builtin.alloc_tensor (%1, 0, %0, "float32") -> %2\n'
        "  call @vm.builtin.shape_of (%2) -> %3\n  ret %3",
        ((2, 4),),
    ),
}

# None, a null pointer in TVM, as the object that a builtin reads: TVM ends its process with these.
NONE = {
    "vm.builtin.shape_of": one("vm.builtin.shape_of (%0)", None),
    "vm.builtin.reshape": one("vm.builtin.reshape (%0, shape(6))", None),
    "vm.builtin.read_if_cond": one("vm.builtin.read_if_cond (%0)", None),
    "vm.builtin.check_tuple_info": one('vm.builtin.check_tuple_info (%0, 2, "here")', None),
}

PROGRAMS = {
    "recursion": Case(
        "func @main(%0) regs=3\n  call @parity.less (%0, 1) -> %1\n  if %1, more\n  ret %0\nmore:\n"
        "  call @parity.add (%0, -1) -> %2\n  call @main (%2) -> %2\n  call @parity.add (%2, %0) -> %2\n  ret %2",
        (20,),
    ),
    "loop": Case(
        "func @main(%0) regs=3\n  call @vm.builtin.copy (0) -> %1\nagain:\n  call @parity.less (%1, %0) -> %2\n"
        "  if %2, done\n  call @parity.add (%1, 1) -> %1\n  goto again\ndone:\n  ret %1",
        (100,),
    ),
    "closures": Case(
        "func @show(%0, %1, %2, %3) regs=5\n  call @vm.builtin.make_tuple (%0, %1, %2, %3) -> %4\n  ret %4\n"
        "func @main(%0, %1) regs=5\n  call @vm.builtin.make_closure (@show, %0) -> %2\n"
        '  call @vm.builtin.make_closure (%2, %1, "b") -> %3\n'
        "  call @vm.builtin.invoke_closure (%vm, %3, 1) -> %4\n  ret %4",
        (5, floats(2)),
    ),
    "closure arity": Case(
        "func @show(%0, %1) regs=2\n  ret %0\n"
        "func @main(%0) regs=3\n  call @vm.builtin.make_closure (@show, %0) -> %1\n"
        "  call @vm.builtin.invoke_closure (%vm, %1) -> %2\n  ret %2",
        (5,),
    ),
    "function value": Case(
        "func @id(%0) regs=1\n  ret %0\nfunc @apply(%0, %1) regs=3\n"
        "  call @vm.builtin.invoke_closure (%vm, %0, %1) -> %2\n  ret %2\n"
        "func @main(%0) regs=2\n  call @apply (@id, %0) -> %1\n  ret %1",
        ("text",),
    ),
    "callback fails": one("parity.fail (%0)", 1),
    "callback fails deeper": Case(
        "func @inner(%0) regs=2\n  call @parity.fail (%0) -> %1\n  ret %1\n"
        "func @main(%0) regs=2\n  call @inner (%0) -> %1\n  ret %1",
        (1,),
    ),
    "if float": Case("func @main(%0) regs=1\n  if %0, out\n  ret %0\nout:\n  ret %void", (0.5,)),
    "if none": Case("func @main(%0) regs=1\n  if %0, out\n  ret %0\nout:\n  ret %void", (None,)),
    "if tensor": Case("func @main(%0) regs=1\n  if %0, out\n  ret %0\nout:\n  ret %void", (floats(1),)),
    "if bool": Case("func @main(%0) regs=1\n  if %0, out\n  ret %0\nout:\n  ret %void", (False,)),
    "ret void": Case("func @main(%0) regs=1\n  ret %void", (1,)),
    "too few arguments": Case("func @main(%0, %1) regs=2\n  ret %1", (1,)),
    "two functions": Case(
        "func @main(%0) regs=2\n  call @twice (%0) -> %1\n  ret %1\n"
        "func @twice(%0) regs=2\n  call @parity.add (%0, %0) -> %1\n  ret %1",
        (21,),
        "twice",
    ),
    "nested tuples": one("vm.builtin.copy (%0)", (1, (2.5, ("x", None)), floats(3))),
    "unknown function": one("parity.nobody (%0)", 1),
}
