"""Kernels that the loop calls on registers as they are, and allocation sites that share a header: against numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyvm
from pyvm import DataType, Shape, VirtualMachine, errors
from pyvm.asm import assemble

BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "maximum": np.maximum,
          "minimum": np.minimum}
UNARY = {"relu": lambda x: np.maximum(x, 0), "neg": np.negative, "abs": np.abs, "square": np.square,
         "sqrt": lambda x: np.sqrt(np.abs(x))}
DTYPES = ["float32", "float64", "int32", "int8"]
# Equal numbers of elements and bytes in many shapes; dimensions on both sides of what a layout word holds.
SHAPES = [(), (1,), (4,), (1, 4), (4, 1), (2, 2), (1, 1, 4), (2, 2, 1, 1), (1, 1, 1, 1, 4), (1, 1, 1, 1, 1, 4),
          (1, 1, 1, 1, 1, 1, 4), (0,), (0, 4), (600,), (1, 600), (1, 1, 1, 1, 1, 600), (2, 1, 1, 1, 1, 600),
          (1, 1, 1, 1, 2500), (1, 9000, 1, 1), (17,), (31,), (32,), (33,)]


def one_call(name: str, n: int) -> VirtualMachine:
    operands = ", ".join(f"%{i}" for i in range(n))
    text = f"func @main({operands}) regs={n}\n  call @kernel.{name} ({operands})\n  ret %{n - 1}\n"
    return VirtualMachine(assemble(text))


MACHINES = {name: one_call(name, n) for names, n in ((BINARY, 3), (UNARY, 2)) for name in names}


def values(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)
    if drawn.dtype.kind == "f":
        drawn.reshape(-1)[::7] = np.nan
        drawn.reshape(-1)[1::7] = -0.0
    return drawn


@pytest.mark.parametrize("name", BINARY)
def test_all_pairs_of_shapes(name: str) -> None:
    for index, (left, right) in enumerate(itertools.product(SHAPES, SHAPES)):
        if max(left, default=0) * max(right, default=0) > 10**6 and left != right:
            continue  # too much work
        a, b = values(left, "float32", index), values(right, "float32", index + 1)
        try:
            with np.errstate(all="ignore"):
                expected = BINARY[name](a, b)
        except ValueError:
            with pytest.raises(errors.VMError):
                MACHINES[name]["main"](a, b, np.zeros(max(left, right, key=len), np.float32))
            continue
        result = MACHINES[name]["main"](a, b, np.empty(expected.shape, np.float32)).numpy()
        np.testing.assert_array_equal(result, expected)
        with pytest.raises(errors.VMError, match="shape"):
            MACHINES[name]["main"](a, b, np.empty((*expected.shape, 2), np.float32))


@given(st.sampled_from(sorted(BINARY)), *[st.sampled_from(DTYPES)] * 3, st.sampled_from(SHAPES))
def test_element_types_are_told_apart(name: str, left: str, right: str, out: str, shape: tuple[int, ...]) -> None:
    a, b, c = values(shape, left, 1), values(shape, right, 2), np.zeros(shape, out)
    if b.dtype.kind == "i":
        b |= 1  # no zero divisors
    if left == right == out:
        with np.errstate(all="ignore"):
            expected = BINARY[name](a, b)
        if "int" in left and name == "div":
            expected = np.trunc(expected)
        np.testing.assert_array_equal(MACHINES[name]["main"](a, b, c).numpy(), expected.astype(out))
    else:
        with pytest.raises(errors.VMError, match="type"):
            MACHINES[name]["main"](a, b, c)


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("shape", SHAPES)
def test_unary(name: str, shape: tuple[int, ...]) -> None:
    x = values(shape, "float32", 3)
    x = np.abs(x) if name == "sqrt" else x
    np.testing.assert_array_equal(MACHINES[name]["main"](x, np.empty(shape, np.float32)).numpy(), UNARY[name](x))
    with pytest.raises(errors.VMError, match="shape"):
        MACHINES[name]["main"](x, np.empty((*shape, 2), np.float32))


def hostile_operands() -> list[object]:
    frozen = np.zeros(4, np.float32)
    frozen.flags.writeable = False
    return [None, 3, 2.5, "text", (1, 2), (np.zeros(4, np.float32),), Shape((4,)), DataType("float32"), frozen,
            np.zeros(4), np.zeros(8, np.float32)[::2], np.zeros((2, 2), np.float32)]


@pytest.mark.parametrize("position", range(3))
def test_hostile_operands(position: int) -> None:
    """Whatever is in a register, the direct entry answers as the general one, which calls with a result reach, does."""
    general = VirtualMachine(assemble(
        "func @main(%0, %1, %2) regs=4\n  call @kernel.add (%0, %1, %2) -> %3\n  ret %2\n"
    ))
    for operand in hostile_operands():
        args = [np.ones(4, np.float32), np.ones(4, np.float32), np.zeros(4, np.float32)]
        args[position] = operand

        def outcome(vm: VirtualMachine, args: list = args) -> object:
            try:
                return vm["main"](*args).numpy().tolist()
            except errors.VMError as error:
                return type(error), str(error).splitlines()[0]

        assert outcome(MACHINES["add"]) == outcome(general)


def test_overlap() -> None:
    memory = np.arange(40, dtype=np.float32)
    a, same, shifted = memory[:16], memory[:16], memory[8:24]
    with pytest.raises(errors.VMError, match="overlap"):
        MACHINES["add"]["main"](a, memory[24:40], shifted)
    with pytest.raises(errors.VMError, match="overlap"):
        MACHINES["neg"]["main"](a, shifted)
    assert MACHINES["add"]["main"](a, memory[24:40], same).numpy().tolist() == [24 + 2 * i for i in range(16)]


STORAGE = "call @vm.builtin.alloc_storage (%vm, shape(64), 0, dtype(float32), \"global\")"


def test_sites_whose_lives_are_not_what_they_look_like() -> None:
    """A site that is reached again while its last tensor lives, and two sites of one kind that live at once."""
    text = f"""
func @main(%0, %1) regs=8
  {STORAGE} -> %2
  call @vm.builtin.alloc_tensor (%2, 0, shape(4), dtype(float32)) -> %3
  if %1, skip
  call @vm.builtin.null_value () -> %3
skip:
  call @vm.builtin.alloc_tensor (%2, 0, shape(4), dtype(float32)) -> %4
  call @kernel.add (%0, %0, %4)
  call @vm.builtin.make_tuple (%3, %4) -> %5
  ret %5
"""
    vm = VirtualMachine(assemble(text))
    x = np.arange(4, dtype=np.float32)
    kept = []
    for turn in range(20):
        first, second = vm["main"](x + turn, turn % 2 == 0)
        assert second.numpy().tolist() == (2 * (x + turn)).tolist()
        assert (first is None) == (turn % 2 == 0)
        kept.append((second, 2 * (x + turn)))
    for tensor, expected in kept:
        assert tensor.numpy().tolist() == expected.tolist()


def test_a_site_in_a_loop_keeps_what_escapes() -> None:
    """Tensors of one site, each over a storage of its own, collected in a tuple that grows."""
    text = f"""
func @main(%0, %1) regs=8
  call @vm.builtin.make_tuple () -> %3
again:
  {STORAGE} -> %4
  call @vm.builtin.alloc_tensor (%4, 0, shape(4), dtype(float32)) -> %5
  call @kernel.mul (%0, %0, %5)
  call @kernel.add (%0, %5, %0)
  call @vm.builtin.make_tuple (%3, %5) -> %3
  call @vm.builtin.null_value () -> %4
  call @direct.decrement (%1) -> %1
  if %1, done
  goto again
done:
  ret %3
"""
    pyvm.register_func("direct.decrement", lambda n: n - 1, override=True)
    vm = VirtualMachine(assemble(text))
    for _ in range(3):
        x = np.arange(1, 5, dtype=np.float32)
        nested = vm["main"](x.copy(), 5)
        expected = []
        for _ in range(5):
            expected.append(x * x)
            x = x + x * x
        for square in reversed(expected):
            nested, tensor = nested
            np.testing.assert_array_equal(tensor.numpy(), square)
        assert nested == ()
