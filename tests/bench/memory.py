"""Planned arenas next to the lower bound: the most bytes of tensors that are ever alive at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyvm
from tests.bench.networks import LIGHT, NETWORKS, Network, folder, onnx_file
from tests.bench.report import Row, Section, Target, cost

TARGET = Target(1.15, at_least=False)
MINILM = {"batch": 1, "sequence": 128}
LENGTHS = ((1, 16), (1, 64), (1, 100), (1, 128), (2, 77), (8, 128), (32, 512))  # of MiniLM: batch, sequence


def run(quick: bool, only: str | None = None) -> Section:
    """A row per network: the nine light ones, and MiniLM and the other fetched ones where their files are."""
    section = Section("memory", "planned arena of one call, KB, next to the most that is alive at once")
    for net in NETWORKS:
        if only and only not in net.name:
            continue
        try:
            path = onnx_file(net)
        except (FileNotFoundError, ImportError) as error:
            section.remarks.append(f"{net.name} skipped: {error}")
            continue
        section.rows.append(_row(net.name, path, None if net.name.startswith(LIGHT) else _fixed_shape(path, net)))
    if not only or only in "minilm":
        path = folder() / "minilm.onnx"
        if path.is_file():
            section.rows.append(_row("minilm", path, MINILM))
            section.rows.append(_row("minilm, bounds instead of sizes", path, None, MINILM))
            section.rows += _planned_at_run_time("minilm", path)
        else:
            section.remarks.append(f"minilm skipped: {path.name} is not in {path.parent}")
    section.remarks.append(
        "alive: tensors inside the function from the call that fills them to their last reader, results and inputs of "
        "the model excepted; a tensor made in the place of another, or of its part of a concatenation, counts once"
    )
    return section


def _fixed_shape(path: Path, net: Network) -> dict[str, Sequence[int]]:
    """The name of the one input of a model, with its shape."""
    import onnx

    (value,) = onnx.load(path, load_external_data=False).graph.input
    return {value.name: net.shape}


def _row(name: str, path: Path, sizes: Mapping[str, Any] | None, bounds: dict[str, int] | None = None) -> Row:
    executable = pyvm.compile(str(path), shape_dict=sizes, bounds=bounds)
    facts = {fact: int(executable.metadata[f"{fact}:main"]) for fact in ("arena_bytes", "live_bytes", "tensor_bytes")}
    kb = {fact: value / 1e3 for fact, value in facts.items()}
    note = f"without sharing {kb['tensor_bytes']:.4g}"
    return cost(name, "KB", kb["arena_bytes"], "alive", kb["live_bytes"], TARGET, note=note, details=dict(facts))


def _planned_at_run_time(name: str, path: Path) -> list[Row]:
    """One executable for all sizes: the plan that its own instruction makes for each."""
    function = pyvm.compile(str(path)).explain().function("main")
    rows = []
    for batch, length in LENGTHS:
        memory = function.memory({"batch": batch, "sequence": length})
        details = {"arena_bytes": memory.arena_bytes, "live_bytes": memory.arena_lower_bound}
        arena, alive = (value / 1e3 for value in details.values())
        title = f"{name}, planned at run time, {batch}x{length}"
        rows.append(cost(title, "KB", arena, "alive", alive, TARGET, details=details))
    return rows
