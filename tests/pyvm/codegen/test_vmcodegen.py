"""Code generation: the bytecode of small programs, registers, control flow, constants, signatures."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest

from pyvm import op
from pyvm.codegen import generate, signature_of
from pyvm.codegen.registers import RegisterFile
from pyvm.errors import LoweringError
from pyvm.ir import (
    BlockBuilder,
    Call,
    CallableStructInfo,
    Constant,
    DataTypeImm,
    GlobalVar,
    IRModule,
    ObjectStructInfo,
    PrimStructInfo,
    ShapeStructInfo,
    SymVar,
    TensorStructInfo,
    Tuple,
    TupleGetItem,
    TupleStructInfo,
    Var,
    as_expr,
    call_packed,
)
from pyvm.signature import ObjectSpec, ScalarSpec, ShapeSpec, TensorSpec, TupleSpec
from pyvm.transform import LOWER, kill_after_last_use, run_passes
from tests.ir_evaluator import run_module
from tests.ir_text import build, tensor
from tests.numpy_kernels import lower_onto_numpy
from tests.reference_vm import run
from vmcore.types import DataType, Shape

N = SymVar("n")
F32 = np.float32


def instructions(module: IRModule, name: str = "main") -> str:
    """The instructions of one function as text, with single blanks."""
    executable = generate(module)
    executable.verify()
    part = executable.as_text().split(f"@{name}:\n")[1].split("\n\n")[0]
    return "\n".join(" ".join(line.split()) for line in part.splitlines())


def expect(module: IRModule, expected: str) -> None:
    assert instructions(module) == textwrap.dedent(expected).strip()


def test_registers_are_used_again() -> None:
    def body(bb, x):
        for i in range(50):
            x = bb.emit(call_packed("f", x), f"y{i}")
        return x

    executable = generate(kill_after_last_use(build(body, dataflow=False, x=tensor(2))))
    (main,) = (info for info in executable.functions if info.name == "main")
    assert main.register_file_size == 2


def test_a_result_takes_the_register_of_an_operand_that_dies() -> None:
    def body(bb, x, y):
        a = bb.emit(call_packed("f", x, y))
        b = bb.emit(call_packed("g", a, x))
        return bb.emit(call_packed("h", b))

    expect(
        build(body, dataflow=False, x=tensor(2), y=tensor(2)),
        """
        call f in: %0, %1 dst: %1
        call g in: %1, %0 dst: %0
        call h in: %0 dst: %0
        ret %0
        """,
    )


def test_operands_of_every_kind() -> None:
    def body(bb, x):
        args = (x, 7, 2**60, 2.5, True, None, "text", (1, 2), np.arange(3), DataTypeImm("int8"), GlobalVar("main"))
        bb.emit(call_packed("f", *args))
        return bb.emit(call_packed("g", np.arange(3), 2**60, 2.5, (1, 2)))

    module = build(body, dataflow=False, x=tensor(2))
    expect(
        module,
        """
        call f in: %0, i7, c[0], c[1], i1, %void, c[2], c[3], c[4], c[5], f[main] dst: %void
        call g in: c[4], c[0], c[1], c[3] dst: %1
        ret %1
        """.replace("%1", "%0"),
    )
    constants = generate(module).constants
    assert constants[:4] == [2**60, 2.5, "text", Shape((1, 2))]
    assert constants[5] == DataType("int8")
    np.testing.assert_array_equal(constants[4], np.arange(3))


def test_if_writes_one_register_from_both_branches() -> None:
    def body(bb, x, c):
        return bb.emit_if(c, lambda: bb.emit(call_packed("f", x)), lambda: x, "r")

    module = build(body, dataflow=False, x=tensor(2), c=tensor(dtype="bool"))
    expect(
        module,
        """
        call vm.builtin.read_if_cond in: %1 dst: %2
        If %2, 3
        call f in: %0 dst: %2
        goto 2
        call vm.builtin.copy in: %0 dst: %2
        ret %2
        """,
    )


def test_calls_of_functions_and_closures() -> None:
    bb = BlockBuilder()
    v, w = Var("v", tensor(2)), Var("w", tensor(2))
    with bb.function("pair", [v, w]):
        bb.emit_func_output(bb.emit(Tuple([w, v])))
    x = Var("x", tensor(2))
    with bb.function("main", [x]):
        pair = GlobalVar("pair", bb.get()["pair"].struct_info)
        bb.emit(Call(pair, [x, x]), "unused")
        both = bb.emit(Call(pair, [x, Constant(np.ones(2, F32))]), "both")
        closure = bb.emit(
            call_packed("vm.builtin.make_closure", pair, x, struct_info=CallableStructInfo(None, ObjectStructInfo()))
        )
        last = bb.emit(Call(closure, [bb.emit(TupleGetItem(both, 0))]))
        bb.emit_func_output(last)
    module = bb.get()
    expect(
        module,
        """
        call pair in: %0, %0 dst: %1
        call pair in: %0, c[0] dst: %1
        call vm.builtin.make_closure in: f[pair], %0 dst: %0
        call vm.builtin.tuple_getitem in: %1, i0 dst: %1
        call vm.builtin.invoke_closure in: %vm, %0, %1 dst: %0
        ret %0
        """,
    )
    first, second = run(generate(module), "main", [np.zeros(2, F32)])
    assert first.tolist() == [0, 0] and second.tolist() == [1, 1]


def test_results_that_are_no_variables() -> None:
    for value, expected in (
        (Constant(np.ones(2)), np.ones(2)),
        (as_expr((2, 3)), Shape((2, 3))),
        (as_expr("text"), "text"),
        (as_expr(2.5), 2.5),
        (as_expr(None), None),
    ):
        module = build(lambda bb, x, value=value: value, dataflow=False, x=tensor(2))
        result = run(generate(module), "main", [np.zeros(2)])
        assert np.array_equal(result, expected) if isinstance(expected, np.ndarray) else result == expected


def control_flow_module() -> IRModule:
    """Recursion, nested branches that share and outlive values, tuples, closures, symbolic shapes."""
    bb = BlockBuilder()
    x, k = Var("x", tensor(N)), Var("k", tensor(dtype="int64"))
    double = bb.declare("double", CallableStructInfo([x.struct_info, k.struct_info], tensor(N)))
    with bb.function("double", [x, k]):
        done = bb.emit(op.less_equal(k, np.array(0)))

        def again():
            return bb.emit(Call(double, [bb.emit(op.add(x, x)), bb.emit(op.sub(k, np.array(1)))]))

        bb.emit_func_output(bb.emit_if(done, lambda: x, again))
    a, b, t = Var("a", tensor(N)), Var("b", tensor(dtype="bool")), Var("t", TupleStructInfo([tensor(N), tensor(2, N)]))
    with bb.function("main", [a, b, t]):
        u = bb.emit(op.exp(a))
        t0 = bb.emit(TupleGetItem(t, 0))

        def inner(value):
            return bb.emit_if(b, lambda: bb.emit(op.neg(bb.emit(op.add(value, t0)))), lambda: value)

        s = bb.emit_if(b, lambda: inner(bb.emit(op.relu(u))), lambda: u)
        s2 = bb.emit_if(b, lambda: t0, lambda: bb.emit(op.mul(bb.emit(op.neg(s)), u)))
        q = bb.emit(Call(double, [s, Constant(np.array(3))]))
        both = bb.emit(op.concat([q, s2], 0))
        shape = bb.emit(op.shape_to_tensor((N, 2 * N + 1)))
        halves = bb.emit(Tuple([both, bb.emit(TupleGetItem(t, 1)), shape]))
        bb.emit_func_output(bb.emit(Tuple([halves, as_expr((N, N // 2)), as_expr(N * N)])))
    return bb.get()


@pytest.mark.parametrize("flag", [False, True])
def test_control_flow_end_to_end(flag: bool) -> None:
    module = control_flow_module()
    lowered, functions = lower_onto_numpy(module)
    executable = generate(lowered)
    executable.verify()
    inputs = {
        "a": np.array([-1, 0, 2.5], F32),
        "b": np.array(flag),
        "t": (np.ones(3, F32), np.zeros((2, 3), F32)),
    }
    got = run(executable, "main", inputs.values(), functions)
    expected = run_module(module, inputs)
    for ours, theirs in zip(got[0], expected[0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert got[1:] == (Shape((3, 1)), 9)


def test_instructions_know_their_source() -> None:
    def body(bb, x):
        with bb.source("fc (MatMul-13)"):
            return bb.emit(op.matmul(x, np.eye(4, dtype=F32)))

    executable = generate(run_passes(build(body, x=tensor(2, 4)), LOWER))
    named = [source for source in executable.debug if source is not None]
    assert set(named) == {"fc (MatMul-13)"} and len(named) == 2  # the allocation and the kernel


def test_what_a_pass_should_have_lowered_is_an_error() -> None:
    with pytest.raises(LoweringError, match="operator neg is left; the pass legalize"):
        generate(build(lambda bb, x: bb.emit(op.neg(x)), x=tensor(2)))
    with pytest.raises(LoweringError, match="a match_cast is left; the pass lower_shapes"):
        generate(build(lambda bb, x: bb.match_cast(x, tensor(N)), dataflow=False, x=tensor(2)))
    with pytest.raises(LoweringError, match=r"shape\(n,\) cannot be an operand"):
        generate(build(lambda bb, x: bb.emit(call_packed("f", (N,))), dataflow=False, x=tensor(N)))


def test_signatures() -> None:
    bb = BlockBuilder()
    params = [
        Var("x", tensor(N, 2 * N + 1)),
        Var("s", ShapeStructInfo((N,))),
        Var("k", PrimStructInfo("int64")),
        Var("t", TupleStructInfo([tensor(2), ObjectStructInfo()])),
        Var("u", TensorStructInfo()),
    ]
    with bb.function("main", params, attrs={"output_names": ["logits"]}):
        bb.emit_func_output(bb.emit(Tuple([params[0], params[1]])))
    signature = signature_of(bb.get()["main"])
    assert signature.params == [
        TensorSpec("x", ("n", "2*n+1"), "float32"),
        ShapeSpec("s", ("n",)),
        ScalarSpec("k", "int64"),
        TupleSpec("t", (TensorSpec("t[0]", (2,), "float32"), ObjectSpec("t[1]"))),
        TensorSpec("u", None, None),
    ]
    assert signature.results == [TensorSpec("logits", ("n", "2*n+1"), "float32"), ShapeSpec("output1", ("n",))]


def test_register_file_restores_for_the_other_branch() -> None:
    registers = RegisterFile(1)
    a, b, c = Var("a"), Var("b"), Var("c")
    registers.bind(a, 0)
    assert registers.allocate(b) == 1
    state = registers.save()
    registers.release(b)
    assert registers.allocate(c) == 1
    assert registers.take() == 2
    registers.restore(state)
    assert registers.take() == 2  # b is still alive in the other branch
    assert registers.size == 3
    assert b in registers and registers[b] == 1
