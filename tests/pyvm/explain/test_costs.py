"""Figures of an explanation against independent counts, and its shapes against runs."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import pyvm
from pyvm import op
from pyvm.asm import assemble
from pyvm.errors import ArgumentValueError
from pyvm.executable import VMExecutable
from pyvm.explain import Explanation, sizes
from pyvm.ir import BlockBuilder, SymVar, TensorStructInfo, Var
from pyvm.profile import CallRecord
from pyvm.signature import TensorSpec
from tests.executables import sample
from tests.ir_text import compiled
from tests.programs import PROGRAMS, random_value

FLOAT = 4  # bytes


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
