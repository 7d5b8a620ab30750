"""Profiles: what was recorded, tables, JSON, and traces whose events nest."""

from __future__ import annotations

import importlib.util
import io
import json
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

import pyvm
from pyvm.asm import assemble
from pyvm.vm import VirtualMachine

PROGRAM = """
func @main(%0 x) regs=4
  call @layer (%0) -> %1  ! "block (Block-1)"
  call @layer (%1) -> %2  ! "block (Block-2)"
  call @t.prof.sleep (1) -> %3
  ret %2
func @layer(%0 x) regs=4
  call @vm.builtin.alloc_storage (%vm, shape(256), 0, dtype(uint8), "global") -> %1
  call @vm.builtin.alloc_tensor (%1, 0, shape(8, 8), dtype(float32)) -> %2
  call @kernel.relu (%0, %2)  ! "relu (Relu-0)"
  call @t.prof.sleep (2) -> %3
  ret %2
"""


@pytest.fixture
def vm() -> Iterator[VirtualMachine]:
    pyvm.register_func("t.prof.sleep", lambda ms: time.sleep(ms / 1000), override=True)
    yield VirtualMachine(assemble(PROGRAM))
    pyvm.remove_global_func("t.prof.sleep")


X = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)


def test_records(vm: VirtualMachine) -> None:
    profile = vm.profile("main", X)
    np.testing.assert_array_equal(profile.result, np.maximum(X, 0))
    layer = ["vm.builtin.alloc_storage", "vm.builtin.alloc_tensor", "kernel.relu", "t.prof.sleep", "layer"]
    assert [r.name for r in profile.records] == [*layer, *layer, "t.prof.sleep"]
    relu = profile.records[2]
    assert relu.args == ("float32(8, 8)", "float32(8, 8)") and relu.result == "None"
    assert (relu.function, relu.pc, relu.source, relu.depth) == ("layer", 6, "relu (Relu-0)", 1)
    call = profile.records[4]
    assert (call.function, call.pc, call.source, call.depth) == ("main", 0, "block (Block-1)", 0)
    assert call.result == "float32(8, 8)"
    assert [r.allocated_bytes for r in profile.records] == [256, 0, 0, 0, 256] * 2 + [0]
    assert all(0 <= r.start_ns <= r.end_ns <= profile.total_ns for r in profile.records)
    assert call.end_ns - call.start_ns >= 2_000_000
    assert call.start_ns <= relu.start_ns and relu.end_ns <= call.end_ns


def test_summaries(vm: VirtualMachine) -> None:
    profile = vm.profile("main", X)
    rows = {(row.function, row.pc): row for row in profile.by_instruction()}
    assert [row.calls for row in rows.values()].count(2) == 4 and len(rows) == 7
    sleep, first = rows["layer", 7], rows["main", 0]
    assert sleep.calls == 2 and sleep.self_ns == sleep.total_ns >= 4_000_000
    assert first.self_ns < 1_000_000 < 2_000_000 <= first.total_ns, "the time inside belongs to the inner Calls"
    assert next(iter(rows)) == ("layer", 7), "most expensive first"
    outermost = sum(r.end_ns - r.start_ns for r in profile.records if r.depth == 0)
    assert sum(row.self_ns for row in rows.values()) == outermost
    assert {name: n for name, n, _ in profile.by_name()}["t.prof.sleep"] == 3
    assert profile.by_name()[0][0] == "t.prof.sleep"


def test_table(vm: VirtualMachine, capsys: pytest.CaptureFixture[str]) -> None:
    profile = vm.profile("main", X)
    lines = str(profile).splitlines()
    assert lines[0].split()[:3] == ["instruction", "callee", "calls"] and len(lines) == 8
    assert lines[1].startswith("@layer 7") and "t.prof.sleep" in lines[1]
    relu = next(line for line in lines if "kernel.relu" in line)
    assert "float32(8, 8), float32(8, 8)" in relu and relu.endswith("relu (Relu-0)")
    assert len(profile.table(limit=2).splitlines()) == 3
    profile.show()
    assert "us" in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("rich") is None, reason="rich is not installed")
def test_table_for_rich(vm: VirtualMachine) -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(vm.profile("main", X))
    assert "kernel.relu" in console.export_text()


def test_json(vm: VirtualMachine) -> None:
    records = json.loads(vm.profile("main", X).as_json())
    assert len(records) == 11 and records[2]["name"] == "kernel.relu" and records[2]["args"] == ["float32(8, 8)"] * 2


def test_trace_events_nest(vm: VirtualMachine) -> None:
    trace = json.loads(vm.profile("main", X).as_chrome_trace())
    events = trace["traceEvents"]
    assert all(event["ph"] == "X" and event["dur"] >= 0 for event in events)
    whole, calls = events[0], events[1:]
    assert whole["name"] == "main" and {event["tid"] for event in events} == {threading.get_ident()}

    def inside(inner: dict, outer: dict) -> bool:
        return outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + 1e-6

    assert all(inside(event, whole) for event in calls)
    layers = [event for event in calls if event["name"] == "layer"]
    relus = [event for event in calls if event["name"] == "kernel.relu"]
    assert len(layers) == len(relus) == 2
    assert [inside(relu, layer) for relu in relus for layer in layers] == [True, False, False, True]
    assert relus[0]["args"]["source"] == "relu (Relu-0)" and relus[0]["args"]["bytes"] == 0


def test_a_failure_leaves_no_profiler_behind(vm: VirtualMachine) -> None:
    with pytest.raises(TypeError):
        vm.profile("main", "text")
    seen = []
    vm.set_instrument(lambda func, name, *rest: seen.append(name))
    assert len(vm.profile("main", X).records) == 11
    assert len(seen) == 22, "the instrument goes on"
    vm.set_instrument(None)
    np.testing.assert_array_equal(vm["main"](X), np.maximum(X, 0))
