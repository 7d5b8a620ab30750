"""BlockBuilder: normal form, names, scopes, inference; and the text of what it builds."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest

from pyvm import op
from pyvm.errors import CompileError
from pyvm.ir import (
    BlockBuilder,
    Call,
    CallableStructInfo,
    Constant,
    DataflowBlock,
    IRModule,
    ObjectStructInfo,
    PrimValue,
    ShapeExpr,
    SymVar,
    TensorStructInfo,
    Tuple,
    TupleGetItem,
    Var,
    VarBinding,
    as_expr,
    call_dps_packed,
    call_packed,
    check_well_formed,
)
from tests.ir_text import text

N = SymVar("n")


def tensor(*shape, dtype="float32"):
    return TensorStructInfo(shape, dtype)


def test_nested_calls_become_bindings() -> None:
    bb = BlockBuilder()
    x = Var("x", tensor(N, 4))
    with bb.function("main", [x], attrs={"output_names": ["y"]}):
        with bb.dataflow(), bb.source("layer1 (Relu-6)"):
            y = bb.emit_output(op.relu(op.add(x, op.exp(x))), "y")
        bb.emit_func_output(y)
    module = check_well_formed(bb.get())
    assert module.script() == textwrap.dedent(
        """\
        @attrs(output_names=["y"])
        def main(x: Tensor((n, 4), float32)) -> Tensor((n, 4), float32):
            with dataflow():
                lv: Tensor((n, 4), float32) = exp(x)                  # [layer1 (Relu-6)]
                lv_1: Tensor((n, 4), float32) = add(x, lv)            # [layer1 (Relu-6)]
                y: Tensor((n, 4), float32) = relu(lv_1)               # [layer1 (Relu-6)]
            return y
        """
    )
    (block,) = module["main"].body.blocks
    assert isinstance(block, DataflowBlock)


def test_everything_prints() -> None:
    bb = BlockBuilder()
    x, c = Var("x", tensor(N)), Var("c", tensor(dtype="bool"))
    with bb.function("main", [x, c]):
        r = bb.emit_if(c, lambda: bb.emit(op.neg(x), "minus"), lambda: x, "r")
        packed = bb.emit(call_packed("user.f", r, 1, 2.5, True, "text", None, (N, 3)))
        m = bb.match_cast(packed, tensor(SymVar("m")), "m")
        d = bb.emit(call_dps_packed("user.g", [m], tensor(2)), "d")
        t = bb.emit(Tuple([d, as_expr(np.arange(6, dtype=np.int64).reshape(2, 3)), as_expr(np.float32(0.5))]), "t")
        bb.emit_func_output(bb.emit(TupleGetItem(t, 1), "out"))
    code = text(bb.get()).splitlines()[1:]
    assert [line.strip() for line in code] == [
        "if c:",
        "minus = neg(x)",
        "r = minus",
        "else:",
        "r = x",
        'gv = extern("user.f")(r, 1, 2.5, True, "text", None, shape(n, 3))',
        "m = match_cast(gv, Tensor((m,), float32))",
        'd = extern("user.g")(m, dps=True)',
        "t = (d, const([0, 1, 2, 3, ...], int64, shape=(2, 3)), 0.5)",
        "out = t[1]",
        "return out",
    ]


def test_variables_of_one_name_print_differently() -> None:
    bb = BlockBuilder()
    x, y = Var("v", tensor(2)), Var("v", tensor(2))
    with bb.function("main", [x]):
        bb.emit_binding(VarBinding(y, op.neg(x)))
        bb.emit_func_output(y)
    assert "v__1 = neg(v)" in text(bb.get())


def test_recursion_has_struct_info() -> None:
    bb = BlockBuilder()
    x = Var("x", tensor(N, 4))
    itself = bb.declare("main", CallableStructInfo([x.struct_info], tensor(N, 4)))
    with bb.function("main", [x]):
        y = bb.emit(Call(itself, [bb.emit(op.concat([x, x], 0))]))
        assert y.struct_info == tensor(2 * N, 4)
        bb.emit_func_output(x)
    check_well_formed(bb.get())


def test_what_the_callee_cannot_say_is_forgotten() -> None:
    bb = BlockBuilder()
    callee = bb.declare("f", CallableStructInfo([ObjectStructInfo()], tensor(N, 4)))
    with bb.function("main", [Var("x", tensor(3))]) as main:
        y = bb.emit(Call(callee, [PrimValue(1)]))
        assert y.struct_info == TensorStructInfo(None, "float32", 2)
        bb.emit_func_output(y)
    assert main.name == "main"


def test_branch_symbols_do_not_leave_the_branch() -> None:
    bb = BlockBuilder()
    x, c = Var("x", tensor(N)), Var("c", tensor(dtype="bool"))
    with bb.function("main", [x, c]):
        r = bb.emit_if(c, lambda: bb.match_cast(x, tensor(SymVar("m"))), lambda: bb.emit(op.neg(x)))
        assert r.struct_info == TensorStructInfo(None, "float32", 1)
        bb.emit_func_output(r)
    check_well_formed(bb.get())


def test_an_operator_refuses_and_the_source_is_named() -> None:
    bb = BlockBuilder()
    x = Var("x", tensor(2, 3))
    unknown = op.matmul(Var("late"), x)  # inferred only when it is emitted
    with pytest.raises(CompileError, match="matmul"), bb.function("main", [x]), bb.source("fc (MatMul-13)"):
        bb.emit(Call(unknown.op, [x, x], unknown.attrs))


def test_misuse() -> None:
    bb = BlockBuilder()
    with pytest.raises(CompileError, match="outside a function"):
        bb.emit(PrimValue(1))
    with pytest.raises(CompileError, match="no emit_func_output"), bb.function("main"):
        pass
    with bb.function("main"):
        bb.emit_func_output(PrimValue(1))
    with pytest.raises(CompileError, match="two functions 'main'"), bb.function("main"):
        bb.emit_func_output(PrimValue(1))
    with pytest.raises(CompileError, match="inside another function"), bb.function("a"), bb.function("b"):
        pass
    with pytest.raises(TypeError, match="no expression stands for a object"):
        as_expr(object())


def test_leaves() -> None:
    assert as_expr((1, N)).values == (1, N)
    assert isinstance(as_expr([np.zeros(2)]), Tuple)
    constant = Constant(np.arange(6).reshape(2, 3).T)
    assert constant.data.flags.c_contiguous and not constant.data.flags.writeable
    assert ShapeExpr((N, 2)).struct_info.values == (N, 2)
    assert PrimValue(True).struct_info.dtype == "bool"
    module = IRModule()
    assert "main" not in module and list(module) == []
