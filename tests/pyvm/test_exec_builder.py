"""ExecBuilder: what TVM's does (register checks, shared constants, renumbering), labels and plain values."""

from __future__ import annotations

import numpy as np
import pytest

from pyvm.exec_builder import ExecBuilder
from pyvm.executable import VMTIR_FUNC
from pyvm.signature import Signature, TensorSpec
from tests.reference_vm import run
from vmcore.errors import VerifyError
from vmcore.isa import IMMEDIATE_MAX, VM_REGISTER, VOID_REGISTER, unpack_arg
from vmcore.types import DataType, Shape

ADD = {"add": lambda a, b: a + b, "mul": lambda a, b: a * b}


def test_a_program_runs() -> None:
    b = ExecBuilder()
    with b.function("main", num_inputs=3, param_names=["a", "b", "c"]):
        b.emit_call("add", args=[b.r(0), b.r(1)], dst=b.r(3))
        b.emit_call("mul", args=[b.r(3), b.r(2)], dst=b.r(4))
        b.emit_ret(b.r(4))
    executable = b.get()
    assert run(executable, "main", [2, 3, 4], ADD) == 20
    info = executable.function("main")
    assert (info.num_args, info.register_file_size, info.param_names) == (3, 5, ["a", "b", "c"])
    assert [(f.name, f.kind, f.num_args) for f in executable.functions[1:]] == [("add", 0, -2), ("mul", 0, -2)]


def test_equal_programs_with_other_register_numbers_are_equal() -> None:
    def build(first: int, second: int) -> str:
        b = ExecBuilder()
        with b.function("f", num_inputs=2):
            b.emit_call("add", [b.r(0), b.r(1)], dst=b.r(first))
            b.emit_call("mul", [b.r(1), b.r(first)], dst=b.r(second))
            b.emit_call("use", [b.r(second), b.void_arg(), b.vm_state()])
            b.emit_ret(b.r(second))
        executable = b.get()
        assert executable.functions[0].register_file_size == 4
        return executable.as_text()

    assert build(2, 3) == build(100, 50)


def test_renumbering_keeps_loops_right() -> None:
    b = ExecBuilder()
    with b.function("f", num_inputs=1):
        b.emit_call("vm.builtin.copy", [1], dst=b.r(90))
        top, end = b.label("top"), b.label("end")
        b.place(top)
        b.emit_if(b.r(0), end)
        b.emit_call("mul", [b.r(90), b.r(0)], dst=b.r(80))
        b.emit_call("vm.builtin.copy", [b.r(80)], dst=b.r(90))
        b.emit_call("add", [b.r(0), -1], dst=b.r(0))
        b.emit_goto(top)
        b.place(end)
        b.emit_ret(b.r(90))
    assert run(b.get(), "f", [5], ADD) == 120
    assert b.get(formalize=False).functions[0].register_file_size == 91


def test_reading_a_register_that_is_never_written() -> None:
    b = ExecBuilder()
    with b.function("f", num_inputs=2):
        b.emit_call("add", [b.r(0), b.r(2)], dst=b.r(3))
        b.emit_ret(b.r(3))
    for check in (True, False):
        with pytest.raises(VerifyError, match=r"%2 of function 'f' .*instruction 0") as caught:
            b.get(check=check)
        assert (caught.value.rule, caught.value.function, caught.value.pc) == ("undefined-register", "f", 0)


def test_returning_a_register_that_is_never_written() -> None:
    b = ExecBuilder()
    with b.function("f"):
        b.emit_ret(b.r(0))
    with pytest.raises(VerifyError, match="never written"):
        b.get()


def test_a_register_written_on_one_path_only() -> None:
    b = ExecBuilder()
    with b.function("f", 1):
        end = b.label()
        b.emit_if(b.r(0), end)
        b.emit_call("g", dst=b.r(1))
        b.place(end)
        b.emit_ret(b.r(1))
    assert b.get(check=False).functions[0].register_file_size == 2
    with pytest.raises(VerifyError):
        b.get()


def test_constants_are_shared_by_value() -> None:
    b = ExecBuilder()
    values = ["a", (1, 2), np.ones((2, 3), "f4"), 0.5, DataType("int8"), 2**60, Shape(), np.float64(1.5)]
    first = [b.convert_constant(v) for v in values]
    again = [
        b.convert_constant(v) for v in ["a", Shape((1, 2)), np.ones((2, 3), "f4"), 0.5, np.dtype("i1"), 2**60, (), 1.5]
    ]
    assert first == again and [op.value for op in first] == list(range(len(values)))
    others = [b.convert_constant(v) for v in ["b", (2, 1), np.ones((3, 2), "f4"), np.ones((2, 3), "f8"), -0.5, "0.5"]]
    assert len({*first, *others}) == len(first) + len(others)
    assert b.convert_constant("a", share=False) not in first
    assert b.c(first[2]) == first[2] == b.c(2)


def test_plain_values_as_arguments() -> None:
    b = ExecBuilder()
    with b.function("f", 1):
        b.emit_call(
            "use", [b.r(0), 7, True, None, 0.5, "s", (1, 2), IMMEDIATE_MAX, IMMEDIATE_MAX + 1, np.int8(-3)], dst=1
        )
        b.emit_ret(1)
    executable = b.get()
    got = run(executable, "f", ["x"], {"use": lambda *args: list(args)})
    assert got == ("x", 7, 1, None, 0.5, "s", Shape((1, 2)), IMMEDIATE_MAX, IMMEDIATE_MAX + 1, -3)
    kinds = [unpack_arg(int(w))[0] for w in executable.instr_data[4:14]]
    assert kinds == [0, 1, 1, 0, 2, 2, 2, 1, 2, 1]


def test_operands() -> None:
    b = ExecBuilder()
    assert [repr(x) for x in (b.r(3), b.imm(-4), b.void_arg(), b.vm_state(), b.f("g"))] == [
        "%3", "imm(-4)", "%void", "%vm", "f[0]",
    ]  # fmt: skip
    assert (b.imm(-4).kind, b.imm(-4).value) == (1, -4)
    assert (b.void_arg().value, b.vm_state().value) == (VOID_REGISTER, VM_REGISTER)
    for bad in (lambda: b.r(-1), lambda: b.r(2**20), lambda: b.imm(2**55), lambda: b.c(0), lambda: b.c(b.r(0))):
        with pytest.raises(ValueError):
            bad()


def test_functions_are_numbered_in_order_of_first_mention() -> None:
    b = ExecBuilder()
    b.declare_function("first")
    with b.function("main"):
        b.emit_call("g", [b.f("h"), b.f("later")])
        b.emit_ret()
    with b.function("later", 1):
        b.emit_ret(b.r(0))
    executable = b.get()
    assert [f.name for f in executable.functions] == ["first", "main", "h", "later", "g"]
    assert executable.function("later").kind == 1
    assert executable.instr_data[-1] == 0


def test_compiled_functions_have_no_instructions() -> None:
    b = ExecBuilder()
    with b.function("native", 2, kind=VMTIR_FUNC, init_register_size=7):
        pass
    with b.function("main"):
        b.emit_call("native", [1, 2])
        b.emit_ret()
    info = b.get().function("native")
    assert (info.kind, info.num_args, info.register_file_size, info.start_instr, info.end_instr) == (2, 2, 7, 0, 0)
    with pytest.raises(ValueError, match="no instructions"):
        with b.function("other", kind=VMTIR_FUNC):
            b.emit_ret()


def test_jumps_by_offset_and_by_label_are_the_same() -> None:
    def build(labels: bool) -> bytes:
        b = ExecBuilder()
        with b.function("f", 1):
            other, end = (b.label(), b.label()) if labels else (3, 2)
            b.emit_if(b.r(0), other)
            b.emit_call("g", dst=1)
            b.emit_goto(end)
            if labels:
                b.place(other)  # type: ignore[arg-type]
            b.emit_call("h", dst=1)
            if labels:
                b.place(end)  # type: ignore[arg-type]
            b.emit_ret(1)
        return b.get().to_bytes()

    assert build(True) == build(False)


def test_misuse() -> None:
    b = ExecBuilder()
    for call in (b.label, b.emit_ret, lambda: b.emit_call("g"), lambda: b.emit_goto(1), lambda: b.emit_if(0, 2)):
        with pytest.raises(ValueError, match="inside"):
            call()
    with pytest.raises(ValueError, match="never placed"):
        with b.function("unplaced"):
            b.emit_goto(b.label("nowhere"))
    with pytest.raises(KeyError), b.function("f"):
        b.emit_goto(b.label())
        raise KeyError
    with b.function("f"):  # what failed left no trace
        label = b.label()
        b.place(label)
        with pytest.raises(ValueError, match="placed twice"):
            b.place(label)
        with pytest.raises(ValueError, match="do not nest"), b.function("g"):
            pass
        with pytest.raises(ValueError, match="scope"):
            b.get()
        with pytest.raises(ValueError, match="not a register"):
            b.emit_ret(b.imm(3))
        b.emit_ret()
    with pytest.raises(ValueError, match="defined twice"), b.function("f"):
        pass
    with pytest.raises(ValueError, match="2 inputs but 1"), b.function("h", 2, ["a"]):
        pass
    with b.function("k"):
        with pytest.raises(ValueError, match="belongs to"):
            b.emit_goto(label)
        b.emit_ret()
    with pytest.raises(ValueError, match="without NUL that is not empty"):
        b.declare_function("")


def test_a_declared_function_must_be_defined() -> None:
    b = ExecBuilder()
    b.declare_function("f", 1)
    with pytest.raises(VerifyError, match="never defined"):
        b.get()


def test_sources_signatures_and_metadata() -> None:
    b = ExecBuilder()
    with b.function("f", 1):
        b.emit_call("g", [b.r(0)], dst=1, source="conv (Conv-11)")
        b.emit_ret(1)
    signature = Signature([TensorSpec("x", ("n",), "float32")], [])
    b.set_signature("f", signature)
    b.set_metadata("producer", "test")
    b.set_memory_scope(b.convert_constant("k"), "global")
    executable = b.get()
    assert list(executable.debug) == ["conv (Conv-11)", None]
    assert executable.signature("f") == signature
    assert executable.metadata == {"producer": "test"} and executable.memory_scopes == {0: "global"}


def test_the_builder_can_go_on_after_get() -> None:
    b = ExecBuilder()
    with b.function("f", 1):
        b.emit_call("g", [b.r(0)], dst=50)
        b.emit_ret(50)
    first = b.get()
    with b.function("h", 1):
        b.emit_ret(0)
    assert [f.name for f in first.functions] == ["f", "g"]
    assert first.functions[0].register_file_size == 2
    assert [f.name for f in b.get().functions] == ["f", "g", "h"]
