"""Real models with their real weights against ONNX Runtime. Fetch them first: `python tests/models/fetch.py`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import pyvm
from tests.models.compare import assert_matches_runtime
from tests.models.fetch import model_path

pytest.importorskip("onnxruntime")

# Model, input, and shapes that one executable must serve.
CASES: dict[str, tuple[str, Sequence[tuple[int, ...]]]] = {
    "ppocr_cls": ("x", [(1, 3, 48, 192), (3, 3, 48, 192), (1, 3, 48, 96)]),
    "mtcnn_pnet": ("input_1", [(1, 120, 160, 3), (1, 37, 61, 3), (2, 12, 12, 3), (1, 65, 34, 3)]),
    "oww_embedding": ("input_1", [(1, 76, 32, 1), (4, 76, 32, 1)]),
}


@pytest.mark.parametrize("name", CASES)
def test_real_model(name: str) -> None:
    path = model_path(name)
    if path is None:
        pytest.skip(f"{name}.onnx is not there; `python tests/models/fetch.py` fetches it")
    executable = pyvm.compile(path)
    input_name, shapes = CASES[name]
    rng = np.random.default_rng(2)
    for shape in shapes:
        x = rng.standard_normal(shape, dtype=np.float32)
        assert_matches_runtime(executable, str(path), {input_name: x})


def test_voice_activity() -> None:
    """25 nested Ifs, of which some change the rank, and LSTMs: one executable for both sample rates and all batches."""
    path = model_path("silero_vad")
    if path is None:
        pytest.skip("silero_vad.onnx is not there; `python tests/models/fetch.py` fetches it")
    executable = pyvm.compile(path, check=True)
    rng = np.random.default_rng(3)
    for rate, samples in ((16000, 576), (8000, 288)):
        for batch in (2, 3, 7):
            x = (rng.standard_normal((batch, samples)) / 10).astype(np.float32)
            state = rng.standard_normal((2, batch, 128)).astype(np.float32)
            assert_matches_runtime(executable, str(path), {"input": x, "state": state, "sr": np.array(rate)})
