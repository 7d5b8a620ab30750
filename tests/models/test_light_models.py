"""The nine networks of the onnx package, with seeded random weights, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

import pyvm
from tests.models.compare import assert_matches_runtime
from tests.models.light import NAMES, light_model

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("name", NAMES)
def test_light_model(name: str) -> None:
    model = light_model(name)
    (value,) = model.graph.input
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    x = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    executable = pyvm.compile(model)
    assert_matches_runtime(executable, model.SerializeToString(), {value.name: x})
    arena, alive = (int(executable.metadata[f"{fact}:main"]) for fact in ("arena_bytes", "live_bytes"))
    assert 0 < alive <= arena <= 1.15 * alive
