"""pyvm.compile: arguments, dumps, errors."""

from __future__ import annotations

import time

import numpy as np
import pytest

import pyvm
from pyvm import op
from pyvm.errors import CompileError, WellFormedError
from pyvm.ir import Function, IRModule, SeqExpr, SymVar, Var
from pyvm.signature import TensorSpec
from pyvm.transform import DEFAULT_PIPELINE, LOWER
from tests.ir_text import build, tensor

N = SymVar("n")


def small_module() -> IRModule:
    def body(bb, x):
        return bb.emit(op.relu(bb.emit(op.matmul(x, np.eye(4, dtype=np.float32)))), "y")

    return build(body, x=tensor(N, 4))


def test_compile_a_module() -> None:
    module = small_module()
    before = str(module)
    executable = pyvm.compile(module, check=True)
    executable.verify()
    assert str(module) == before
    assert executable.signature("main").params == [TensorSpec("x", ("n", 4), "float32")]
    names = [info.name for info in executable.functions]
    assert "kernel.matmul" in names and "kernel.relu" in names


def test_equal_modules_give_equal_bytes() -> None:
    assert pyvm.compile(small_module()).to_bytes() == pyvm.compile(small_module()).to_bytes()


def test_dump_writes_the_module_after_each_pass(tmp_path) -> None:
    pyvm.compile(small_module(), dump=tmp_path / "ir")
    names = sorted(path.name for path in (tmp_path / "ir").iterdir())
    assert names[0] == "00_input.txt" and len(names) == len(DEFAULT_PIPELINE) + 1
    assert names[-1] == f"{len(DEFAULT_PIPELINE):02d}_kill_after_last_use.txt"
    assert "kernel.matmul" in (tmp_path / "ir" / names[-1]).read_text()


def test_passes_can_be_chosen() -> None:
    seen = []

    def remember(module: IRModule) -> IRModule:
        seen.append(module)
        return module

    pyvm.compile(small_module(), passes=[remember, *LOWER]).verify()
    assert len(seen) == 1


def test_errors() -> None:
    with pytest.raises(CompileError, match="exec_mode 'compiled': only 'bytecode' is built in this version"):
        pyvm.compile(small_module(), exec_mode="compiled")
    with pytest.raises(CompileError, match="shape_dict"):
        pyvm.compile(small_module(), shape_dict={"x": (2, 4)})
    x = Var("x", tensor(2))
    with pytest.raises(WellFormedError, match="rule scoping"):
        pyvm.compile(IRModule({"main": Function([x], SeqExpr([], Var("y", tensor(2))))}))


def test_a_pass_that_breaks_a_rule_is_named() -> None:
    def break_it(module: IRModule) -> IRModule:
        main = module["main"]
        return IRModule({"main": main.with_body(SeqExpr(main.body.blocks, Var("nowhere", main.ret_struct_info)))})

    with pytest.raises(WellFormedError, match="after pass break_it"):
        pyvm.compile(small_module(), passes=[break_it], check=True)


def test_long_programs() -> None:
    """No recursion over bindings, and time that grows with their number (seconds would mean its square)."""

    def body(bb, x):
        for i in range(2000):
            x = bb.emit(op.concat([x, np.zeros(1, np.float32)], 0) if i % 100 == 0 else op.relu(x))
        return x

    started = time.process_time()
    executable = pyvm.compile(build(body, x=tensor(N)))
    assert time.process_time() - started < 5
    assert len(executable.instr_offset) > 100  # the chains between the concatenations are fused
