"""Struct info: construction, comparison, joining and symbols."""

from __future__ import annotations

import numpy as np
import pytest

from pyvm.ir import (
    CallableStructInfo,
    ObjectStructInfo,
    PrimStructInfo,
    ShapeStructInfo,
    SymVar,
    TensorStructInfo,
    TupleStructInfo,
    common_struct_info,
    struct_info_vars,
    substitute_struct_info,
)
from pyvm.ir.struct_info import erase_unknown, match_symbols

N, M = SymVar("n"), SymVar("m")


def test_tensors_compare_by_content() -> None:
    assert TensorStructInfo((N, 4), "float32") == TensorStructInfo([N + 1 - 1, np.int64(4)], np.float32)
    assert TensorStructInfo((N, 4), "float32") != TensorStructInfo((M, 4), "float32")
    assert TensorStructInfo(None, "int8", 2).ndim == 2
    assert TensorStructInfo((2, 3)).ndim == 2
    assert TensorStructInfo((2, 3), "bool").is_static
    assert not TensorStructInfo((N, 3), "bool").is_static
    assert len({TensorStructInfo((N,), "int8"), TensorStructInfo((N,), "int8")}) == 1


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="ndim 3, but the shape has 2"):
        TensorStructInfo((2, 3), "float32", 3)
    with pytest.raises(ValueError, match="dimension -1"):
        TensorStructInfo((2, -1), "float32")
    with pytest.raises(ValueError, match="not a data type"):
        TensorStructInfo((2,), "flaot32")


def test_text() -> None:
    assert str(TensorStructInfo((N, 2 * N + 1), "float32")) == "Tensor((n, 2*n+1), float32)"
    assert str(TensorStructInfo()) == "Tensor(?, ?)"
    assert str(TensorStructInfo(None, "int8", 2)) == "Tensor(ndim=2, int8)"
    assert str(ShapeStructInfo((N,))) == "Shape((n,))"
    assert str(TupleStructInfo([PrimStructInfo("int64", N), ObjectStructInfo()])) == "Tuple(Prim(int64, n), Object)"
    function = CallableStructInfo([ObjectStructInfo()], ShapeStructInfo(None, 2))
    assert str(function) == "Callable((Object) -> Shape(ndim=2))"


def test_common_struct_info_is_what_both_satisfy() -> None:
    a, b = TensorStructInfo((N, 4), "float32"), TensorStructInfo((2, 4), "float32")
    assert common_struct_info(a, a) == a
    assert common_struct_info(a, b) == TensorStructInfo(None, "float32", 2)
    assert common_struct_info(a, TensorStructInfo((N, 4), "int8")) == TensorStructInfo((N, 4))
    assert common_struct_info(a, ShapeStructInfo((N,))) == ObjectStructInfo()
    assert common_struct_info(TupleStructInfo([a]), TupleStructInfo([b])) == TupleStructInfo(
        [TensorStructInfo(None, "float32", 2)]
    )
    assert common_struct_info(ShapeStructInfo((1, 2)), ShapeStructInfo((3, 4))) == ShapeStructInfo(None, 2)
    assert common_struct_info(PrimStructInfo("int64", 1), PrimStructInfo("int64", 2)) == PrimStructInfo("int64")


def test_symbols_of_callee_and_caller() -> None:
    declared = TupleStructInfo([TensorStructInfo((N, 4), "float32"), PrimStructInfo("int64", M)])
    actual = TupleStructInfo([TensorStructInfo((M + 1, 4), "float32"), PrimStructInfo("int64", 7)])
    mapping: dict = {}
    match_symbols(declared, actual, mapping)
    assert mapping == {N: M + 1, M: 7}
    assert substitute_struct_info(TensorStructInfo((2 * N, M), "int8"), mapping) == TensorStructInfo(
        (2 * M + 2, 7), "int8"
    )
    assert struct_info_vars(declared) == {N, M}
    assert erase_unknown(TensorStructInfo((N, M), "int8"), frozenset([N])) == TensorStructInfo(None, "int8", 2)
    assert erase_unknown(ShapeStructInfo((N,)), frozenset()) == ShapeStructInfo(None, 1)
