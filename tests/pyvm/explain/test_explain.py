"""Explanations: numbers against independent counts, shapes against runs, and programs of every kind."""

from __future__ import annotations

import json
import pickle
import random
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import pyvm
from pyvm import op
from pyvm.asm import assemble
from pyvm.errors import ArgumentValueError
from pyvm.executable import DebugInfo, VMExecutable
from pyvm.explain import CATEGORIES, Explanation, explain, sizes
from pyvm.ir import BlockBuilder, SymVar, TensorStructInfo, Var, parse
from pyvm.ir.source import noted, notes_of
from pyvm.profile import CallRecord, Profile
from pyvm.signature import TensorSpec
from pyvm.tvm_format import read_tvm, write_tvm
from tests.executables import executables, sample
from tests.fuzz.mutate import mutant
from tests.fuzz.programs import programs
from tests.models.light import light_model
from tests.pyvm.test_programs import PROGRAMS, random_value
from tests.random_programs import random_program

FLOAT = 4  # bytes


def compiled(text: str) -> VMExecutable:
    return pyvm.compile(parse(text))


@pytest.fixture(scope="module")
def resnet() -> Explanation:
    return pyvm.compile(light_model("resnet50").SerializeToString()).explain(name="resnet50")


# ---- numbers


def test_resnet50_counts(resnet: Explanation) -> None:
    """4.09 G multiply-adds at 224 x 224 (He et al. state 3.8 G for the variant with stride in the first 1x1 window)."""
    main = resnet.function("main")
    macs = 0
    spatial, channels = 56, 64
    macs += 112 * 112 * 64 * 3 * 49
    for blocks, width, stride in ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2)):
        for block in range(blocks):
            step = stride if block == 0 else 1
            first, second = _resnet_block(spatial, channels, width, step)
            macs += first + second
            spatial, channels = spatial // step, 4 * width
    macs += 2048 * 1000
    assert main.totals().macs == pytest.approx(macs, rel=0.03)
    assert 4.0e9 < main.totals().macs < 4.2e9  # type: ignore[operator]
    assert main.totals().flops_unknown == main.totals().bytes_unknown == 0
    figures = main.memory()
    assert figures.arena_lower_bound <= figures.arena_bytes <= 1.15 * figures.arena_lower_bound
    weights = sum(o.nbytes for i in main.instructions for o in i.inputs if o.where.startswith("c["))  # type: ignore[misc]
    transformed = sum(i.inputs[1].nbytes for i in main.instructions if i.kernel == "conv_winograd")  # type: ignore[misc]
    assert transformed > 0
    assert weights - transformed * 7 // 16 == pytest.approx(25.5e6 * FLOAT, rel=0.01)


def _resnet_block(size: int, channels: int, width: int, stride: int) -> tuple[int, int]:
    """Multiply-adds of a bottleneck and of its projection, with the stride in the 3x3 window."""
    out = size // stride
    body = size * size * channels * width + out * out * (9 * width * width + width * 4 * width)
    projects = stride != 1 or channels != 4 * width
    return body, out * out * channels * 4 * width if projects else 0


@pytest.mark.parametrize(
    "x, w, attrs",
    [
        ((1, 3, 9, 9), (4, 3, 3, 3), {}),
        ((2, 4, 8, 7), (6, 2, 3, 2), {"group": 2, "strides": (2, 1), "pads": 1}),
        ((1, 6, 10), (6, 1, 3), {"group": 6, "dilations": 2}),
        ((3, 5, 6, 6), (7, 5, 1, 1), {}),
        ((2, 3, 4, 4), (5, 3, 4, 4), {}),
    ],
)
def test_convolution_counts(x: tuple[int, ...], w: tuple[int, ...], attrs: dict) -> None:  # type: ignore[type-arg]
    """One multiply-add per output and tap, counted by doing it."""
    bb = BlockBuilder()
    a = Var("x", TensorStructInfo(x, "float32"))
    with bb.function("main", params=[a]):
        bb.emit_func_output(bb.emit(op.conv(a, np.ones(w, np.float32), **attrs)))
    main = pyvm.compile(bb.get()).explain().function("main")
    (conv,) = (i for i in main.instructions if i.kernel == "conv")
    out = conv.outputs[0].shape
    assert out is not None
    macs = 0
    for _ in np.ndindex(*out):  # type: ignore[arg-type]
        macs += int(np.prod(w[1:]))
    assert (conv.macs, conv.flops) == (macs, 2 * macs)
    assert conv.bytes_read == FLOAT * (np.prod(x) + np.prod(w))
    assert conv.bytes_written == FLOAT * np.prod(out)  # type: ignore[arg-type]
    assert conv.why


def test_winograd_is_named_and_explained() -> None:
    """Arithmetic is counted by the definition; the reason for the algorithm is there."""
    bb = BlockBuilder()
    x = Var("x", TensorStructInfo((2, 32, 14, 14), "float32"))
    with bb.function("main", params=[x]):
        y = bb.emit(op.conv(x, np.ones((48, 32, 3, 3), np.float32), np.ones(48, np.float32), pads=1, activation="relu"))
        bb.emit_func_output(y)
    main = pyvm.compile(bb.get()).explain().function("main")
    (conv,) = (i for i in main.instructions if i.kernel == "conv_winograd")
    macs, outputs = 2 * 48 * 196 * 32 * 9, 2 * 48 * 196
    assert (conv.macs, conv.flops) == (macs, 2 * macs + 2 * outputs)
    assert conv.bytes_read == FLOAT * (2 * 32 * 196 + 16 * 64 * 32 + 48)  # two panels of 32
    why = "; ".join(conv.why)
    assert "16 multiplications instead of 36" in why and "32 channels by 48 on 49 tiles" in why


@pytest.mark.parametrize(
    "a, b, macs",
    [
        ((5, 7), (7, 3), 105),
        ((7,), (7, 3), 21),
        ((2, 4, 5), (5, 6), 240),
        ((2, 1, 4, 5), (3, 5, 6), 720),
        ((4,), (4,), 4),
    ],
)
def test_product_counts(a: tuple[int, ...], b: tuple[int, ...], macs: int) -> None:
    bb = BlockBuilder()
    x, y = Var("x", TensorStructInfo(a, "float32")), Var("y", TensorStructInfo(b, "float32"))
    with bb.function("main", params=[x, y]):
        bb.emit_func_output(bb.emit(op.matmul(x, y)))
    totals = pyvm.compile(bb.get()).explain().function("main").totals()
    assert (totals.macs, totals.flops) == (macs, 2 * macs)


def test_sizes_are_expressions_and_numbers() -> None:
    executable = compiled(
        "def main(x: Tensor((n, 64), float32), w: Tensor((64, 10), float32)) -> Tensor((n, 10), float32):\n"
        "    return relu(matmul(x, w))\n"
    )
    main = executable.explain().function("main")
    (product,) = (i for i in main.instructions if i.kernel == "matmul")
    n = SymVar("n")
    assert product.flops == 2 * n * 64 * 10
    assert product.bytes_read == FLOAT * (n * 64 + 640)
    assert product.outputs[0].shape == (n, 10)
    assert main.symbols == ["n"]
    given_n = executable.explain(dims={"n": 4})
    assert given_n.number(product.flops) == 5120
    data = json.loads(given_n.to_json())
    (row,) = (i for i in data["functions"][0]["instructions"] if i.get("callee") == "kernel.matmul")
    assert row["flops"] == "1280*n" and row["numbers"]["flops"] == 5120
    assert "5.12 k" in str(given_n) and "1280*n" in str(executable.explain())


def test_costs_follow_what_is_used() -> None:
    """A gather reads the rows it takes, a slice its part, a fill nothing."""
    executable = compiled(
        "def main(table: Tensor((1000, 8), float32), ids: Tensor((3,), int64)) -> Tensor((3, 8), float32):\n"
        "    return gather(table, ids, axis=0)\n"
    )
    main = executable.explain().function("main")
    (gather,) = (i for i in main.instructions if i.kernel == "gather")
    assert gather.bytes_read == 3 * 8 + 3 * 8 * FLOAT
    assert gather.bytes_written == 3 * 8 * FLOAT


def test_fused_chains_say_what_they_do() -> None:
    executable = compiled(
        "def main(x: Tensor((n, 64), float32)) -> Tensor((n, 64), float32):\n    return tanh(mul(exp(x), neg(x)))\n"
    )
    explanation = executable.explain(dims={"n": 2})
    fused = [i for i in explanation.function("main").instructions if i.kernel == "fused_elementwise"]
    names = ["exp", "neg", "mul", "tanh"]
    if fused:
        assert explanation.number(fused[0].flops) == 4 * 2 * 64
        assert sorted(fused[0].label.split()) == sorted(names)
        assert any("in one pass over the data" in why for why in fused[0].why)
        assert explanation.number(fused[0].bytes_moved) == 2 * 2 * 64 * FLOAT
    else:
        assert [i.kernel for i in explanation.function("main").instructions if i.is_work] == names


def test_epilogues_are_counted_and_named() -> None:
    """Every way of a kernel's signature that compilers use: operands by position, with and without what is optional."""
    text = """
func @main(%0 x, %1 w, %2 bias, %3 residual, %4 out, %5 panels) regs=6
  call @vm.builtin.match_shape (%0, %void, 4, 0, 1, 0, 8, 0, 6, 0, 6, "")
  call @vm.builtin.match_shape (%1, %void, 4, 0, 16, 0, 8, 0, 1, 0, 1, "")
  call @vm.builtin.match_shape (%2, %void, 1, 0, 16, "")
  call @vm.builtin.match_shape (%3, %void, 4, 0, 1, 0, 16, 0, 6, 0, 6, "")
  call @vm.builtin.match_shape (%4, %void, 4, 0, 1, 0, 16, 0, 6, 0, 6, "")
  call @kernel.conv (%0, %1, %2, shape(1, 1), shape(0, 0, 0, 0), shape(1, 1), 1, 8, 0.1, 0.0, %3, %4)
  call @kernel.conv (%0, %1, %void, shape(1, 1), shape(0, 0, 0, 0), shape(1, 1), 1, 0, %4)
  ret %4
signature @main {"params": [SPECS], "results": []}
"""
    spec = '{"kind": "tensor", "name": "%s", "shape": null, "dtype": "float32"}'
    names = ("x", "w", "bias", "residual", "out", "panels")
    executable = assemble(text.replace("SPECS", ", ".join(spec % name for name in names)))
    rich, plain = (i for i in executable.explain().function("main").instructions if i.kernel == "conv")
    macs = 16 * 36 * 8
    assert rich.macs == plain.macs == macs
    assert plain.flops == 2 * macs and rich.flops == 2 * macs + 16 * 36 * (2 + 2)
    assert "residual + leaky_relu" in rich.label and plain.label == ""
    assert rich.bytes_moved == FLOAT * (8 * 36 + 16 * 8 + 16 + 16 * 36 * 2)


def test_dims_are_checked() -> None:
    for bad in (-1, 2.5, True, "4"):
        with pytest.raises(ArgumentValueError, match="dims"):
            sample().explain(dims={"n": bad})  # type: ignore[dict-item]


# ---- against runs


@pytest.mark.parametrize("name", PROGRAMS)
def test_shapes_are_those_of_a_run(name: str) -> None:
    """Every tensor of a profiled run has the dtype and the shape that the explanation states."""
    program = PROGRAMS[name]
    for function, call in program.functions.items():
        pyvm.register_func(function, call, override=True)
    executable = pyvm.compile(program.module)
    explanation = executable.explain(name=name)
    assert explanation.problem == ""
    by_pc = {i.pc: i for f in explanation.functions for i in f.instructions}
    machine = pyvm.VirtualMachine(executable)
    for n in {program.batches[-1], program.batches[0]}:
        rng = np.random.default_rng(n)
        params = program.module["main"].params
        args = program.draw(n, rng) if program.draw else [random_value(p.struct_info, n, rng) for p in params]
        dims = _dims_of(executable, args)
        main = explanation.function("main")
        seen = sum(
            _compare(by_pc[record.pc], record, dims)
            for record in machine.profile("main", *args).records
            if main.begin <= record.pc < main.end
        )
        assert seen or name in NO_TENSORS


NO_TENSORS = {"tree_sum", "scalars_and_strings"}  # programs whose main function has no tensor of known shape


def _dims_of(executable: VMExecutable, args: list[object]) -> dict[str, int]:
    dims: dict[str, int] = {}
    for spec, arg in zip(executable.signature("main").params, args, strict=True):
        if isinstance(spec, TensorSpec) and spec.shape is not None:
            for dim, size in zip(spec.shape, np.shape(arg), strict=True):  # type: ignore[arg-type]
                if isinstance(dim, str) and dim.isidentifier():
                    dims[dim] = size
    return dims


def _compare(instruction, record: CallRecord, dims: dict[str, int]) -> int:  # type: ignore[no-untyped-def]
    seen = 0
    shown = {o.where: o for o in instruction.operands if o.dtype is not None and o.shape is not None}
    words = re.findall(r"%\d+|c\[\d+\]", instruction.text.partition(" -> ")[0])
    tensors = [text for text in record.args if re.fullmatch(r"\w+\([\d, ]*\)", text)]
    places = [where for where in words if where in shown]
    if len(places) != len(tensors):
        return 0  # a value whose kind was not known
    for where, actual in zip(places, tensors, strict=True):
        operand = shown[where]
        numbers = [sizes.number(dim, dims) for dim in operand.shape]
        if None in numbers:
            continue
        assert f"{operand.dtype}({', '.join(map(str, numbers))})" == actual, instruction.text
        seen += 1
    return seen


def test_most_shapes_are_known(resnet: Explanation) -> None:
    for name in ("dynamic_mlp", "masked_attention", "small_cnn", "layer_norm"):
        main = pyvm.compile(PROGRAMS[name].module).explain().function("main")
        work = [i for i in main.instructions if i.is_work]
        assert work and all(i.flops is not None and i.bytes_moved is not None for i in work), name
        assert all(o.shape is not None and None not in o.shape for i in work for o in i.outputs), name
    assert all(i.flops is not None for i in resnet.function("main").instructions)


def test_profile_is_merged() -> None:
    executable = pyvm.compile(PROGRAMS["dynamic_mlp"].module)
    rng = np.random.default_rng(0)
    args = [random_value(p.struct_info, 64, rng) for p in PROGRAMS["dynamic_mlp"].module["main"].params]
    profile = pyvm.VirtualMachine(executable).profile("main", *args)
    explanation = executable.explain(dims={"n": 64}, profile=profile)
    main = explanation.function("main")
    calls = [i for i in main.instructions if i.opcode == "call"]
    assert all(i.calls == 1 and i.self_ns is not None for i in calls)
    assert main.totals().self_ns == sum(row.self_ns for row in profile.by_instruction())
    assert "GFLOP/s" in str(explanation)
    assert "Roofline" in explanation.to_html()


# ---- memory


def assert_no_overlap(explanation: Explanation, n: int = 16) -> int:
    """Buffers that are alive at the same time share no byte of an arena; returns how many pairs were looked at."""
    pairs = 0
    for function in explanation.functions:
        dims = function.resolved({name: n for name in function.symbols})
        placed = []
        for buffer in function.buffers.values():
            offset, nbytes = sizes.number(buffer.offset, dims), sizes.number(buffer.nbytes, dims)
            if offset is not None and nbytes is not None:
                placed.append(replace(buffer, offset=offset, nbytes=nbytes))
        for i, a in enumerate(placed):
            for b in placed[:i]:
                if a.storages != b.storages or len(a.storages) != 1:
                    continue
                together = any(p <= s and r <= q for p, q in a.spans for r, s in b.spans)
                if together:
                    pairs += 1
                    apart = a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset  # type: ignore[operator]
                    same = (a.offset, a.nbytes) == (b.offset, b.nbytes)  # handed over in place
                    assert apart or same or a.nbytes == 0 or b.nbytes == 0, (function.name, a, b)
    return pairs


@pytest.mark.parametrize("name", ["squeezenet", "inception_v1", "densenet121", "shufflenet"])
def test_buffers_alive_together_lie_apart(name: str) -> None:
    executable = pyvm.compile(light_model(name).SerializeToString())
    explanation = executable.explain(name=name)
    assert assert_no_overlap(explanation) > 20
    figures = explanation.function("main").memory()
    assert 0 < figures.arena_lower_bound <= figures.arena_bytes * 1.0001
    assert figures.arena_bytes < figures.without_reuse
    assert figures.arena_lower_bound == int(executable.metadata["live_bytes:main"])  # the planner's own


def test_arena_that_is_planned_when_the_function_runs() -> None:
    """Sizes that no compiler can compare: the explanation plans as the function does."""
    executable = compiled(
        "def main(x: Tensor((n, 8), float32), y: Tensor((m, 3), float32), w: Tensor((8, 3), float32)) "
        "-> Tensor((n, m), float32):\n"
        "    a = tanh(x)\n"
        "    b = exp(y)\n"
        "    c = matmul(a, w)\n"
        "    return matmul(c, transpose(b, perm=(1, 0)))\n"
    )
    explanation = executable.explain(dims={"n": 5, "m": 70})
    main = explanation.function("main")
    assert len(main.plans) == 1 and sorted(main.symbols) == ["m", "n"]
    assert assert_no_overlap(explanation, 40) > 0
    figures = main.memory({"n": 5, "m": 70})
    assert 0 < figures.arena_lower_bound <= figures.arena_bytes
    (arena,) = (s for s in main.storages.values() if s.kind == "arena")
    assert explanation.number(arena.nbytes) == figures.arena_bytes
    assert main.memory().unknown
    check_forms(explanation)


def test_lifetimes_and_reasons() -> None:
    executable = compiled(
        "def main(x: Tensor((16, 64), float32), w: Tensor((64, 8), float32)) -> Tensor((16, 8), float32):\n"
        "    a = tanh(x)\n"
        "    b = softmax(a, axis=1)\n"
        "    c = add(a, b)\n"
        "    return matmul(c, w)\n"
    )
    main = executable.explain().function("main")
    tanh, softmax, add, product = (i for i in main.instructions if i.is_work)
    a = main.buffers[tanh.outputs[0].buffers[0]]
    assert a.writers[0] == tanh.pc and softmax.pc in a.readers and add.pc in a.readers
    assert tanh.feeds == [softmax.pc, add.pc] and add.fed_by == [tanh.pc, softmax.pc]
    assert any("belongs to the caller" in why for why in tanh.why)
    assert any(f"read again at {add.pc}" in why for why in softmax.why)
    assert any("in place" in why for why in add.why)
    result = main.buffers[product.outputs[0].buffers[0]]
    assert result.escapes == "is returned" and result.end == main.end - 1


def test_sides_of_a_branch_are_not_alive_together() -> None:
    executable = compiled(
        "def main(x: Tensor((64,), float32), c: Tensor((), bool)) -> Tensor((64,), float32):\n"
        "    if c:\n"
        "        a = exp(x)\n"
        "        y = tanh(a)\n"
        "    else:\n"
        "        b = sin(x)\n"
        "        y = cos(b)\n"
        "    return mul(y, x)\n"
    )
    main = executable.explain().function("main")
    assert main.has_control_flow
    (jump,) = (i for i in main.instructions if i.opcode == "if")
    first = [b for b in main.buffers.values() if jump.pc < b.id < jump.target]  # type: ignore[operator]
    assert first
    for buffer in first:
        for pc in range(jump.target, jump.target + 2):  # type: ignore[operator, arg-type]
            assert not any(begin <= pc <= end for begin, end in buffer.spans)


def test_after_a_branch_only_one_side_has_made_something() -> None:
    """Nested Ifs, and a side that returns: each result of 4096 bytes exists once."""
    executable = compiled(
        "def main(x: Tensor((1024,), float32), c: Tensor((), bool), d: Tensor((), bool)) -> Tensor((1024,), float32):\n"
        "    if c:\n"
        "        if d:\n"
        "            z = softmax(x, axis=0)\n"
        "        else:\n"
        "            z = softmax(exp(x), axis=0)\n"
        "        y = z\n"
        "    else:\n"
        "        y = cos(sin(x))\n"
        "    return y\n"
    )
    main = executable.explain().function("main")
    returned = next(i.pc for i in main.instructions if i.opcode == "ret")
    assert sum(any(a <= returned <= b for a, b in s.spans) for s in main.storages.values()) == 1
    figures = main.memory()
    assert figures.lower_bound <= 2 * 4096 < figures.without_reuse


def test_a_plan_made_at_run_time_is_as_small_as_one_made_before() -> None:
    """Two layers of an attention, at lengths where placing by time or by size takes 1.17 times what is needed."""
    layer = (
        "    q{i} = matmul(h{i}, w)\n    k{i} = matmul(h{i}, w)\n    v{i} = matmul(h{i}, w)\n"
        "    s{i} = softmax(matmul(q{i}, transpose(k{i}, perm=(1, 0))), axis=1)\n"
        "    h{j} = add(matmul(s{i}, v{i}), h{i})\n"
    )
    executable = compiled(
        "def main(x: Tensor((n, 32), float32), w: Tensor((32, 32), float32)) -> Tensor((n, 32), float32):\n"
        "    h0 = tanh(x)\n" + layer.format(i=0, j=1) + layer.format(i=1, j=2) + "    return matmul(h2, w)\n"
    )
    main = executable.explain().function("main")
    for n in (1, 7, 16, 30, 32, 33, 64, 100, 257):
        figures = main.memory({"n": n})
        assert figures.arena_lower_bound <= figures.arena_bytes <= 1.02 * figures.arena_lower_bound, n


def test_loop_carried_values_live_through_the_loop() -> None:
    executable = assemble(
        """
func @main(%0 x) regs=4
  call @vm.builtin.alloc_storage (%vm, shape(256), 0, dtype(uint8), "global") -> %1
  call @vm.builtin.alloc_tensor (%1, 0, shape(8), dtype(float32)) -> %2
  call @kernel.copy (%0, %2)
again:
  call @vm.builtin.alloc_tensor (%1, 64, shape(8), dtype(float32)) -> %3
  call @kernel.tanh (%2, %3)
  call @kernel.copy (%3, %2)
  call @vm.builtin.read_if_cond (%2) -> %3
  if %3, done
  goto again
done:
  ret %2
"""
    )
    main = executable.explain().function("main")
    carried, temporary = main.buffers[1], main.buffers[3]
    assert carried.end >= 8 and carried.escapes
    assert temporary.end == 5
    assert any("loop" in why for why in main.instructions[8].why)


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


def check_forms(explanation: Explanation) -> str:
    """All forms of an explanation; returns the page."""
    assert str(explanation)
    explanation.to_text(all_instructions=True)
    data = json.loads(explanation.to_json())
    assert len(data["functions"]) == len(explanation.functions)
    for function in explanation.functions:
        assert [i.pc for i in function.instructions] == list(range(function.begin, function.end))
        assert all(i.category in CATEGORIES for i in function.instructions)
        for buffer in function.buffers.values():
            assert buffer.begin <= buffer.end
    page = explanation.to_html()
    Checked().check(page)
    for function in explanation.functions:
        for i in function.instructions[:5000]:
            assert '<tr class="i' in page and f'data-pc="{i.pc}"' in page
    return page


class Checked(HTMLParser):
    """Checks that elements close in order, and notes scripts and everything that would be fetched."""

    VOID = frozenset({"meta", "br", "input", "link", "img"})
    NEVER = frozenset("iframe object embed link base form img image foreignobject use animate".split())

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: dict[str, int] = {}
        self.problems: list[str] = []

    def check(self, page: str) -> None:
        self.feed(page)
        self.close()
        assert not self.open and not self.problems, (self.open, self.problems[:5])
        assert self.seen["script"] >= 2 and self.seen.get("html") == 1

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name.startswith("on") or name in ("src", "action", "formaction", "data", "srcset", "srcdoc"):
                self.problems.append(f"{tag} {name}={value}")
            if name in ("href", "xlink:href") and not (value or "").startswith("#"):
                self.problems.append(f"{tag} {name}={value}")
        if tag in self.NEVER:
            self.problems.append(f"<{tag}>")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> closes {self.open[-1:]}")
        else:
            self.open.pop()


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


def test_the_way_of_a_convolution_is_the_kernels_own() -> None:
    """What the page says comes from the function that the kernel itself decides with."""
    from vmcore.kernels.conv import way

    ones, none = (1, 1), (0, 0, 0, 0)
    assert way((1, 8, 5, 5), (16, 8, 5, 5), (1, 16, 1, 1), none, ones, ones, 1) == "whole"
    assert way((1, 8, 5, 5), (16, 8, 1, 1), (1, 16, 5, 5), none, ones, ones, 1) == "pointwise"
    assert way((1, 8, 5, 5), (8, 1, 3, 3), (1, 8, 3, 3), none, ones, ones, 8) == "direct"
    assert way((1, 8, 5, 5), (16, 8, 3, 3), (1, 16, 3, 3), none, ones, ones, 1) == "panels"
    assert way((1, 8, 5), (16, 8, 3), (1, 16, 3), (0, 0), (1,), (1,), 1) == "panels"
    with pytest.raises(ValueError, match="3 to 5 sizes"):
        way((1, 8), (16, 8), (1, 16), (), (), (), 1)


def test_who_reads_a_joined_tensor_is_fed_by_what_made_its_parts() -> None:
    """Squeezenet's concatenations are no instructions; the graph holds together all the same."""
    main = pyvm.compile(light_model("squeezenet").SerializeToString()).explain().function("main")
    assert not any(i.kernel == "concat" for i in main.instructions)
    joined = [b for b in main.buffers.values() if b.joins]
    assert len(joined) == 8 and all(len(b.joins) == 2 for b in joined)
    by_pc = {i.pc: i for i in main.instructions}
    for buffer in joined:
        makers = {main.buffers[part].writers[-1] for part in buffer.joins}
        for reader in buffer.readers:
            assert makers <= set(by_pc[reader].fed_by)
    roots = [i for i in main.instructions if i.kernel in ("conv", "conv_winograd", "max_pool") and not i.fed_by]
    assert roots == []
