"""Forms of an explanation: every program and hostile ones as text, JSON and a page; what passes recorded; files."""

from __future__ import annotations

import json
import pickle
import random
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings

import pyvm
from pyvm.asm import assemble
from pyvm.executable import DebugInfo, VMExecutable
from pyvm.explain import Explanation, explain
from pyvm.ir.source import noted, notes_of
from pyvm.profile import CallRecord, Profile
from pyvm.signature import TensorSpec
from pyvm.tvm_format import read_tvm, write_tvm
from tests.executables import executables
from tests.explanations import assert_no_overlap, check_forms
from tests.fuzz.mutate import mutant
from tests.fuzz.programs import programs
from tests.models.light import light_model
from tests.programs import PROGRAMS
from tests.random_programs import random_program

# ---- what passes recorded


def test_passes_record_what_they_did(resnet: Explanation, tmp_path) -> None:  # type: ignore[no-untyped-def]
    main = resnet.function("main")
    first = next(i for i in main.instructions if i.kernel == "conv")
    assert "batch_norm is folded into the weights, as nothing else reads what was between" in first.why
    assert "relu is done by the same call, as nothing else reads what was between" in first.why
    executable = pyvm.compile(light_model("squeezenet").SerializeToString())
    executable.save(tmp_path / "a.vmx")
    loaded = pyvm.load_executable(tmp_path / "a.vmx")
    assert list(loaded.notes) == list(executable.notes) and any(executable.notes)
    assert loaded.explain().to_json() == executable.explain().to_json()
    plain = pyvm.load_executable(tmp_path / "a.vmx")
    plain.notes = DebugInfo()
    plain.save(tmp_path / "b.vmx")
    extra = (tmp_path / "a.vmx").stat().st_size - (tmp_path / "b.vmx").stat().st_size
    assert extra < 1024 + 4 * len(plain.instr_offset)


def test_sources_keep_their_notes() -> None:
    source = noted(noted("conv1 (Conv-11)", "first"), "second")
    assert source == "conv1 (Conv-11)" and notes_of(source) == ("first", "second")
    assert notes_of(noted(source, "first")) == ("first", "second")
    assert notes_of("plain") == notes_of(None) == () and noted(None, "lost") is None
    again = pickle.loads(pickle.dumps(source))
    assert again == source and notes_of(again) == ("first", "second")


# ---- every program


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_in_every_form(name: str) -> None:
    explanation = pyvm.compile(PROGRAMS[name].module).explain(name=name)
    check_forms(explanation)
    for n in (1, 16, 33):
        assert_no_overlap(explanation, n)


def test_page_has_every_instruction_and_no_address(resnet: Explanation) -> None:
    page = check_forms(resnet)
    main = resnet.function("main")
    assert page.count('<tr class="i') == len(main.instructions)
    work = [i for i in main.instructions if i.is_work]
    graph = page[page.index('<svg class="graph"') :]
    graph = graph[: graph.index("</svg>")]
    assert all(f'data-pc="{i.pc}"' in graph for i in work)
    memory = page[page.index('<svg class="memory"') :]
    memory = memory[: memory.index("</svg>")]
    assert all(f'data-pc="{b.id}"' in memory for b in main.buffers.values())
    assert set(re.findall(r"https?://[^\"'<> ]*", page)) <= {"http://www.w3.org/2000/svg"}
    assert len(page) < 1_000_000


def test_other_compilers_programs_are_explained() -> None:
    executable = read_tvm(write_tvm(pyvm.compile(PROGRAMS["dynamic_mlp"].module)))
    assert not executable.signatures
    explanation = executable.explain()
    check_forms(explanation)
    work = [i for i in explanation.function("main").instructions if i.is_work]
    assert all(i.flops is not None for i in work)  # the checks of the program give the shapes


def test_unknown_functions_are_unknown() -> None:
    executable = assemble(
        """
func @main(%0 x, %1 f) regs=4
  call @somebody.else (%0, 3) -> %2
  call @vm.builtin.invoke_closure (%vm, %1, %2) -> %3
  call @their.kernel (%0, %2)
  call @kernel.not_in_the_table (%0, %2)
  ret %3
"""
    )
    explanation = executable.explain()
    check_forms(explanation)
    instructions = explanation.function("main").instructions
    assert instructions[0].flops is None and instructions[0].bytes_moved is None
    assert instructions[3].flops is None
    assert "?" in str(explanation)


def test_programs_that_do_not_verify() -> None:
    executable = assemble(
        """
func @main(%0 x) regs=1
  goto +5
  raw 99, 1, 2
  ret %7
"""
    )
    explanation = executable.explain()
    assert explanation.problem
    assert "does not verify" in str(explanation) and "does not verify" in check_forms(explanation)


def test_empty_program() -> None:
    check_forms(VMExecutable().explain())


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(executables())
def test_any_executable(executable: VMExecutable) -> None:
    check_forms(executable.explain())


def test_random_programs() -> None:
    for seed in range(150):
        executable, _ = random_program(random.Random(seed))
        explanation = executable.explain()
        assert explanation.problem == ""
        check_forms(explanation) if seed % 10 == 0 else str(explanation)


def test_mutants() -> None:
    rng = random.Random(3)
    known = programs()
    for case in range(250):
        _, executable, _ = known[rng.randrange(len(known))]
        explanation = mutant(executable, rng).explain()
        check_forms(explanation) if case % 10 == 0 else str(explanation)


# ---- hostile input


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`&\x00\x1b[31m]]>{{7*7}}"


def test_hostile_names_stay_text() -> None:
    from pyvm.exec_builder import ExecBuilder
    from pyvm.signature import Signature

    b = ExecBuilder()
    name = HOSTILE.replace("\x00", "")  # which a function's name cannot have
    with b.function(name, num_inputs=1, param_names=[HOSTILE]):
        b.emit_call("kernel." + name, [b.r(0), HOSTILE], source=HOSTILE)
        b.emit_call(
            "vm.builtin.alloc_storage",
            [b.vm_state(), pyvm.Shape((8,)), 0, pyvm.DataType("uint8"), "global"],
            dst=b.r(1),
            source=HOSTILE,
        )
        b.emit_call(
            "vm.builtin.alloc_tensor", [b.r(1), 0, pyvm.Shape((8,)), pyvm.DataType("uint8")], dst=b.r(2), source=HOSTILE
        )
        b.emit_call(name + "1", [b.r(0), b.r(2)], source=HOSTILE)
        b.emit_call(name + "2", [b.r(2)], dst=b.r(3), source=HOSTILE)
        b.emit_ret(b.r(3), source=HOSTILE)
    b.set_signature(name, Signature([TensorSpec(HOSTILE, (HOSTILE, "n", "n*n"), HOSTILE)], []))
    b.set_metadata(f"arena_bytes:{name}", HOSTILE)
    record = CallRecord(0, HOSTILE, HOSTILE, HOSTILE, 0, 10, 0, 0, 0, (HOSTILE,), HOSTILE)
    explanation = explain(b.get(), profile=Profile(HOSTILE, [record], 10, None), name=HOSTILE)
    page = check_forms(explanation)
    assert "<script>alert" not in page and "<img" not in page and "\x00" not in page and "\x1b" not in page
    assert page.count("<script") == page.count("</script>")
    assert "\x1b" not in str(explanation)


def test_script_is_named_by_its_digest(resnet: Explanation) -> None:
    import base64
    import hashlib

    page = resnet.to_html()
    script = page[page.rindex("<script>") + 8 : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#x27;sha256-{digest}&#x27;" in page and "default-src &#x27;none&#x27;" in page


def test_hostile_expressions_take_no_time() -> None:
    """Sizes that grow with every instruction, and signatures that multiply out, end as unknown."""
    lines = ["func @main(%0 x) regs=3", "  call @vm.builtin.alloc_shape_heap (%vm, 8) -> %1"]
    lines.append('  call @vm.builtin.match_shape (%0, %1, 2, 1, 0, 1, 1, "ctx")')
    for _ in range(60):
        lines.append("  call @pyvm.builtin.eval_shape_expr (%1, 0, shape(1, 0, 1, 1, 2, 0, 1, 0, 4, 0))")
        lines.append("  call @pyvm.builtin.eval_shape_expr (%1, 1, shape(1, 1, 1, 1, 4, 0, 0, 3, 7, 0, 1, 0, 2, 0))")
    lines.append("  call @vm.builtin.make_shape (%1, 2, 1, 0, 1, 1) -> %2")
    lines.append("  ret %2")
    dims = "*".join("(" + "+".join(f"a{i}_{j}" for j in range(6)) + ")" for i in range(30))
    lines.append(
        'signature @main {"params": [{"kind": "tensor", "name": "x", "shape": ['
        f'"{dims}", "{"(" * 3000}n{")" * 3000}"], "dtype": "float32"}}], "results": []}}'
    )
    begin = time.perf_counter()
    check_forms(assemble("\n".join(lines)).explain(dims={"n": 2}))
    assert time.perf_counter() - begin < 20


def test_entangled_jumps_take_no_time() -> None:
    """A program in which every block leads back to every other one."""
    lines = ["func @main(%0 x) regs=40"]
    for block in range(300):
        lines.append(f"L{block}:")
        lines.append(
            f"  call @vm.builtin.copy (%{block % 39}) -> %{block % 39 + 1}"
            if block > 40
            else f"  call @vm.builtin.copy (%0) -> %{block % 39 + 1}"
        )
        lines.append(f"  if %0, L{block + 1 + (block * 7) % (300 - block)}" if block < 299 else "  ret %0")
        if block % 3 == 2 and block < 299:
            lines.append(f"  call @vm.builtin.read_if_cond (%0) -> %39\n  if %39, L{block + 1}\n  goto L{block // 2}")
    lines.append("L300:\n  ret %0")
    begin = time.perf_counter()
    check_forms(assemble("\n".join(lines)).explain())
    assert time.perf_counter() - begin < 30


def test_large_program() -> None:
    """Twenty thousand instructions: seconds, and a page that leaves out what a picture cannot hold."""
    from pyvm.exec_builder import ExecBuilder

    b = ExecBuilder()
    shape, dtype = b.convert_constant(pyvm.Shape((16,))), b.convert_constant(pyvm.DataType("float32"))
    with b.function("main", num_inputs=1):
        b.emit_call(
            "vm.builtin.alloc_storage",
            [b.vm_state(), pyvm.Shape((640,)), 0, pyvm.DataType("uint8"), "global"],
            dst=b.r(1),
        )
        b.emit_call("vm.builtin.alloc_tensor", [b.r(1), 0, shape, dtype], dst=b.r(2))
        b.emit_call("kernel.tanh", [b.r(0), b.r(2)])
        for i in range(10_000):
            b.emit_call("vm.builtin.alloc_tensor", [b.r(1), 64 * (i % 9 + 1), shape, dtype], dst=b.r(3 + i % 2))
            b.emit_call("kernel.add", [b.r(2 if i == 0 else 4 - i % 2), b.r(2), b.r(3 + i % 2)])
        b.emit_ret(b.r(2))
    begin = time.perf_counter()
    explanation = b.get().explain()
    page = explanation.to_html()
    assert time.perf_counter() - begin < 30
    assert "more are left out" in page and len(page) < 25_000_000
    assert explanation.function("main").totals().flops == 10_001 * 16


# ---- the way out


def test_files(tmp_path, resnet: Explanation) -> None:  # type: ignore[no-untyped-def]
    resnet.save(tmp_path / "a.html")
    resnet.save(tmp_path / "a.json")
    resnet.save(tmp_path / "a.txt")
    assert (tmp_path / "a.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    assert json.loads((tmp_path / "a.json").read_text("utf-8"))["name"] == "resnet50"
    assert "conv" in (tmp_path / "a.txt").read_text("utf-8")
    assert "srcdoc" in resnet._repr_html_()


def test_command_line(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    from pyvm.cli import main

    pyvm.compile(PROGRAMS["dynamic_mlp"].module).save(tmp_path / "m.vmx")
    model = str(tmp_path / "m.vmx")
    assert main(["explain", model]) == 0
    assert "matmul" in capsys.readouterr().out
    assert main(["explain", model, "--text", "--dim", "n=8"]) == 0
    assert "alloc_tensor" in capsys.readouterr().out
    assert main(["explain", model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["symbols"]
    assert main(["explain", model, "-o", str(tmp_path / "m.html"), "--profile", "--dim", "n=8", "--repeat", "2"]) == 0
    assert "Roofline" in (tmp_path / "m.html").read_text("utf-8")
    capsys.readouterr()
    assert main(["explain", model, "--dim", "nothing=8"]) == 2
    assert main(["explain", model, "-o", str(tmp_path / "m.pdf")]) == 2
    assert main(["explain", str(tmp_path / "none.vmx")]) == 2
