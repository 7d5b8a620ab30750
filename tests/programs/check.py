"""A program on the machine and on the reference interpreter beside numpy, for all its batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import pyvm
from pyvm.ir import StructInfo, TensorStructInfo, TupleStructInfo, check_well_formed
from tests.native_kernels import NATIVE
from tests.programs.table import OTHER_SYMBOLS, Program
from tests.pyvm.ir.test_parser import assert_round_trip, assert_round_trips_after_every_pass
from tests.reference_vm import run


def random_value(info: StructInfo | None, n: int, rng: np.random.Generator) -> Any:
    """A value of this struct info with batch `n`."""
    if isinstance(info, TupleStructInfo):
        return tuple(random_value(inner, n, rng) for inner in info.fields)
    assert isinstance(info, TensorStructInfo) and info.shape is not None, info
    sizes = {"n": n, **OTHER_SYMBOLS}
    shape = tuple(dim if isinstance(dim, int) else sizes[str(dim)] for dim in info.shape)
    if info.dtype == "bool":
        return np.asarray(rng.integers(0, 2, shape)).astype(bool)
    if info.dtype == "int64":
        return np.asarray(rng.integers(0, 5, shape))
    return rng.standard_normal(shape).astype(info.dtype or "float32")


def plain(value: Any) -> Any:
    """A result with tensors as arrays and arrays as tuples."""
    if isinstance(value, (tuple, list)):
        return tuple(map(plain, value))
    return value if isinstance(value, (int, float, str)) else np.asarray(value)


def assert_same(got: Any, expected: Any) -> None:
    if isinstance(expected, tuple):
        assert isinstance(got, tuple) and len(got) == len(expected)
        for ours, theirs in zip(got, expected, strict=True):
            assert_same(ours, theirs)
    elif isinstance(expected, np.ndarray):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    else:
        assert got == expected


def check_program(program: Program) -> None:
    """Compiles a program once, and compares the machine, the reference interpreter and numpy for all batches."""
    check_well_formed(program.module)
    assert_round_trip(program.module)
    assert_round_trips_after_every_pass(program.module)
    executable = pyvm.compile(program.module, check=True)
    for function, call in program.functions.items():
        pyvm.register_func(function, call, override=True)
    machine = pyvm.VirtualMachine(executable)
    functions = _Functions(program.functions)
    for n in program.batches:
        rng = np.random.default_rng(n)
        params = program.module["main"].params
        args = program.draw(n, rng) if program.draw else [random_value(p.struct_info, n, rng) for p in params]
        expected = plain(program.oracle(*args))
        assert_same(plain(machine["main"](*args)), expected)
        assert_same(plain(run(executable, "main", args, functions)), expected)


class _Functions(Mapping[str, Callable[..., Any]]):
    """The native kernels and the functions of a program."""

    def __init__(self, own: Mapping[str, Callable[..., Any]]) -> None:
        self._own = own

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self._own[name] if name in self._own else NATIVE[name]

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in NATIVE

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)
