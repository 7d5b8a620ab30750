"""Compile time: real models from .onnx to .vmx, and random graphs of growing size."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Any

import pyvm
from pyvm import op
from pyvm.ir import BlockBuilder, IRModule, TensorStructInfo, Var
from tests.bench.networks import folder, network, onnx_file
from tests.bench.report import Row, Section, Target

BUDGETS_S = {"light_resnet50": 3.0, "minilm": 2.0}
NODES = (1_000, 10_000, 100_000)


def run(quick: bool, only: str | None = None) -> Section:
    """Rows in seconds; those of random graphs also per node, which shows how time grows with size."""
    section = Section("compile", "seconds from a model to its .vmx file (best of 3; graphs: once)")
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "model.vmx"
        for name, budget in BUDGETS_S.items():
            if only and only not in name:
                continue
            try:
                path = onnx_file(network(name)) if name.startswith("light_") else folder() / f"{name}.onnx"
                times = [_seconds(str(path), target) for _ in range(1 if quick else 3)]
            except (FileNotFoundError, ImportError, pyvm.errors.CompileError) as error:
                section.remarks.append(f"{name} skipped: {error}")
                continue
            note = f"first {times[0]:.3g}; {target.stat().st_size / 1e6:.1f} MB"
            section.rows.append(Row(name, "s", min(times), target=Target(budget, at_least=False, of="ours"), note=note))
        for n_nodes in NODES[:2] if quick else NODES:
            if only and only not in "graph":
                continue
            seconds = _seconds(random_graph(n_nodes), target)
            note = f"{seconds / n_nodes * 1e6:.0f} us per node"
            section.rows.append(Row(f"graph of {n_nodes} nodes", "s", seconds, note=note))
    return section


def _seconds(model: Any, target: Path) -> float:
    begin = time.perf_counter()
    pyvm.compile(model).save(target)
    return time.perf_counter() - begin


def random_graph(n_nodes: int, seed: int = 0) -> IRModule:
    """A function of `n_nodes` operators on (16, 32) tensors; most read recent values, some read old ones."""
    rng = random.Random(seed)
    builder = BlockBuilder()
    x = Var("x", TensorStructInfo((16, 32), "float32"))
    values: list[Any] = [x]

    def recent(mean: float) -> Any:
        return values[-1 - min(int(rng.expovariate(1 / mean)), len(values) - 1)]

    with builder.function("main", [x]):
        for _ in range(n_nodes):
            kind = rng.randrange(6)
            if kind < 2:
                value = (op.tanh, op.relu)[kind](values[-1])
            elif kind < 5:
                value = (op.add, op.mul, op.maximum)[kind - 2](values[-1], recent(10))
            else:
                value = op.softmax(values[-1], axis=1)
            values.append(builder.emit(value))
        builder.emit_func_output(values[-1])
    return builder.get()
