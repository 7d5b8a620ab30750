"""Dispatch: nanoseconds per instruction, call and entry, next to TVM's in the same process."""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

import numpy as np

from tests.bench.programs import (
    CALLS,
    PROGRAMS,
    WITH_TVM_KERNEL,
    Kit,
    Program,
    PyvmKit,
    TvmKit,
    add_program,
    build,
    entry_program,
)
from tests.bench.report import Row, Section, Target, speedup
from tests.bench.timing import Call, alternate, pinned, repeated

ENTRIES = 1000  # calls per repetition in rows that cross from Python


def run(quick: bool) -> Section:
    """All rows. Without TVM or ONNX Runtime only our own figures, with a remark."""
    section = Section("dispatch", f"minimum over repetitions of {CALLS} calls, ns per call; one pinned core")
    passes, rounds = (1, 30) if quick else (4, 500)
    kits: dict[str, Kit] = {"pyvm": PyvmKit()}
    programs: tuple[Program, ...] = PROGRAMS
    try:
        theirs = TvmKit()
    except ImportError as error:
        section.remarks.append(f"no TVM here: {error}")
    else:
        kits["TVM"] = theirs
        programs = (*PROGRAMS, WITH_TVM_KERNEL)
    with pinned():
        calls = {program.name: _calls(program, kits) for program in PROGRAMS}
        if programs is not PROGRAMS:
            with tempfile.TemporaryDirectory() as folder:
                both: dict[str, Kit] = {"pyvm": PyvmKit(theirs.export(folder)), "TVM": theirs}
                calls[WITH_TVM_KERNEL.name] = _calls(WITH_TVM_KERNEL, both)
        best: dict[str, dict[str, float]] = {name: dict.fromkeys(kits, np.inf) for name in calls}
        # Passes over all rows, so that a bad moment of the machine does not decide a row.
        for _ in range(passes):
            for name, sides in calls.items():
                for side, times in alternate(sides, rounds).items():
                    best[name][side] = min(best[name][side], times.min() / CALLS)
        for program in programs:
            section.rows.append(_row(program.name, best[program.name], program.target))
        section.rows.append(_entry_row(kits, passes * rounds))
        section.rows.append(_array_row(kits, passes * rounds, section))
    return section


def _calls(program: Program, kits: dict[str, Kit]) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    for side, kit in kits.items():
        function, argument = build(program, kit)
        calls[side] = partial(function, argument)
    return calls


def _row(name: str, best: dict[str, float], target: Target | None) -> Row:
    if "TVM" not in best:
        return Row(name, "ns", best["pyvm"], target=target)
    return speedup(name, "ns", best["pyvm"], "TVM", best["TVM"], target)


def _entry_row(kits: dict[str, Kit], rounds: int) -> Row:
    array = np.arange(16, dtype=np.float32)
    calls = {side: repeated(entry_program(kit), kit.tensor(array), ENTRIES) for side, kit in kits.items()}
    times = alternate(calls, max(20, rounds // 4))
    best = {side: values.min() / ENTRIES for side, values in times.items()}
    return _row("Python -> VM entry and return, tensor", best, Target(8, 4))


def _array_row(kits: dict[str, Kit], rounds: int, section: Section) -> Row:
    """numpy array in, numpy array out, of `x + x` on 16 floats: what a caller of a tiny model pays."""
    x = np.arange(16, dtype=np.float32)
    ours = add_program(kits["pyvm"])
    calls = {"pyvm": repeated(lambda value: ours(value).numpy(), x, ENTRIES)}
    if "TVM" in kits:
        theirs, tensor = add_program(kits["TVM"]), kits["TVM"].tensor
        calls["TVM"] = repeated(lambda value: theirs(tensor(value)).numpy(), x, ENTRIES)
    session = _add_session()
    if session is None:
        section.remarks.append("no ONNX Runtime here: no peer for the row of the 1-operator model")
    else:
        calls["ONNX Runtime"] = repeated(lambda value: session.run(None, {"x": value})[0], x, ENTRIES)
        np.testing.assert_array_equal(ours(x).numpy(), session.run(None, {"x": x})[0])
    best = {side: times.min() / ENTRIES for side, times in alternate(calls, max(5, rounds // 40)).items()}
    note = f"TVM {best['TVM']:.0f}" if "TVM" in best else ""
    name, target = "1-operator model on 16 floats, numpy -> numpy", Target(200, at_least=False, of="ours")
    if session is None:
        return Row(name, "ns", best["pyvm"], target=target, note=note)
    return speedup(name, "ns", best["pyvm"], "ONNX Runtime", best["ONNX Runtime"], target, note=note)


def _add_session() -> Any:
    """ONNX Runtime's side; None without it."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper
    except ImportError:
        return None
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [16]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "add", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
