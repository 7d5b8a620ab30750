"""Local functions: what lambda_lift makes of them, and that what they capture reaches them."""

from __future__ import annotations

import numpy as np
import pytest

import pyvm
from pyvm import op
from pyvm.errors import LoweringError, WellFormedError
from pyvm.ir import (
    BlockBuilder,
    Call,
    CallableStructInfo,
    DataflowBlock,
    Function,
    IRModule,
    SeqExpr,
    SymVar,
    Var,
    VarBinding,
    as_expr,
    check_well_formed,
    parse,
)
from pyvm.transform import eliminate_dead_code, lambda_lift
from tests.ir_text import expect, tensor
from tests.pyvm.ir.test_parser import assert_round_trip

PROGRAM = """
def main(x: Tensor((n,), float32), k: Tensor((m,), float32)) -> Tensor((n,), float32):
    y = relu(x)
    def shift(a: Tensor((n,), float32)) -> Tensor((n,), float32):
        return add(a, y)
    def twice(h: Callable((Tensor((n,), float32)) -> Tensor((n,), float32)), b: Tensor((n,), float32)) -> Tensor((n,), float32):
        return call(shift, call(h, b))
    return call(twice, shift, x)
"""  # noqa: E501


def test_functions_get_what_they_capture_as_parameters() -> None:
    module = parse(PROGRAM)
    check_well_formed(module)
    assert_round_trip(module)
    lifted = lambda_lift(module)
    check_well_formed(lifted)
    expect(
        lifted,
        """
        def `main.shift`:
            v = add(a, y)
            return v

        def `main.twice`:
            v = call(h, b)
            v__1 = @`main.shift`(v, y)
            return v__1

        def main:
            y = relu(x)
            shift = extern("vm.builtin.make_closure")(@`main.shift`, y)
            v = @`main.twice`(shift, x, y)
            return v
        """,
    )
    x = np.arange(-2, 3, dtype=np.float32)
    main = pyvm.VirtualMachine(pyvm.compile(module, check=True))["main"]
    np.testing.assert_array_equal(main(x, x[:1]).numpy(), x + 2 * np.maximum(x, 0))


def test_symbols_are_captured_as_integers() -> None:
    module = parse(
        """
def main(x: Tensor((n,), float32), y: Tensor((n*m,), float32), z: Tensor((m,), float32)) -> Tensor((m, n), float32):
    def fold(a: Tensor((n*m,), float32)) -> Tensor((m, n), float32):
        return reshape(a, shape(m, n))
    return call(fold, y)
"""
    )
    check_well_formed(module)
    lifted = lambda_lift(module)
    check_well_formed(lifted)
    assert [param.name for param in lifted["main.fold"].params] == ["a", "m", "n"]
    main = pyvm.VirtualMachine(pyvm.compile(module, check=True))["main"]
    y = np.arange(6, dtype=np.float32)
    np.testing.assert_array_equal(main(y[:3], y, y[:2]).numpy(), y.reshape(2, 3))


def recursive() -> IRModule:
    """A local function that calls itself and captures: x * 2**steps by doubling."""
    bb = BlockBuilder()
    n = SymVar("n")
    x, steps = Var("x", tensor(n)), Var("steps", tensor(dtype="int64"))
    with bb.function("main", [x, steps]):
        two = bb.emit(op.add(np.float32(1), np.float32(1)))

        def body(itself: Var, i: Var, a: Var) -> Var:
            def again() -> Var:
                return bb.emit(Call(itself, [bb.emit(op.add(i, np.int64(1))), bb.emit(op.mul(a, two))]))

            return bb.emit_if(op.less(i, steps), again, lambda: a)

        params = [Var("i", tensor(dtype="int64")), Var("a", tensor(n))]
        loop = bb.emit_function("loop", params, body, ret=tensor(n))
        bb.emit_func_output(bb.emit(Call(loop, [as_expr(np.array(0)), x])))
    return bb.get()


def test_recursion_of_a_local_function_runs_in_one_frame() -> None:
    module = recursive()
    check_well_formed(module)
    assert_round_trip(module)
    executable = pyvm.compile(module, check=True)
    assert "goto  -" in executable.as_text()
    main = pyvm.VirtualMachine(executable)["main"]
    x = np.arange(5, dtype=np.float32)
    for steps in (0, 1, 7):
        np.testing.assert_array_equal(main(x, np.array(steps)).numpy(), x * 2**steps)
    assert np.isinf(main(x, np.array(100_000)).numpy()[1:]).all()  # far deeper than frames may nest


def test_parameters_that_trade_places() -> None:
    module = parse(
        """
def rotate(i: Tensor((), int64), a: Object, b: Object, c: Object, d: Object) -> Object:
    go = greater(i, const(0, int64))
    if go:
        j = sub(i, const(1, int64))
        r = @rotate(j, b, c, a, a)
    else:
        r = (a, b, c, d)
    return r

def main(i: Tensor((), int64)) -> Object:
    return @rotate(i, 1, 2, 3, 4)
"""
    )
    check_well_formed(module)
    main = pyvm.VirtualMachine(pyvm.compile(module, check=True))["main"]
    a, b, c, d = 1, 2, 3, 4
    for i in range(8):
        assert main(np.array(i)) == (a, b, c, d)
        a, b, c, d = b, c, a, a


def test_other_passes_want_it_before_them() -> None:
    with pytest.raises(LoweringError, match="lambda_lift"):
        eliminate_dead_code(parse(PROGRAM))


def test_rules_of_local_functions() -> None:
    x = Var("x", tensor(2))
    inner = Var("a", tensor(2))
    info = CallableStructInfo([tensor(2)], tensor(2))
    unseen = Function([inner], SeqExpr([], Var("z", tensor(2))))
    hidden = Function([inner], SeqExpr([], inner))
    for function, block, message in (
        (unseen, None, "rule scoping: variable z is used where it is not defined .*in @main/f"),
        (hidden, DataflowBlock, "rule dataflow-purity: a local function in a dataflow block"),
    ):
        bb = BlockBuilder()
        bb.open_scope()
        bb.emit_binding(VarBinding(Var("f", info), function))
        body = bb.close_scope(x)
        if block is not None:
            body = SeqExpr([block(list(body.bindings()))], x)
        with pytest.raises(WellFormedError, match=message):
            check_well_formed(IRModule({"main": Function([x], body)}))
