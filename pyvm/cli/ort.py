"""ONNX Runtime as a peer for checks and timings; an optional package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyvm.cli.common import UsageError, require


class OrtModel:
    """A model in ONNX Runtime, on the CPU with the same number of threads as pyvm."""

    def __init__(self, path: Path, threads: int | None) -> None:
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
        runtime = require("onnxruntime", "comparing with ONNX Runtime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if threads is None:
            import pyvm

            threads = pyvm.get_num_threads()
        options.intra_op_num_threads = threads
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base
            raise UsageError(f"{path}: ONNX Runtime cannot load it: {' '.join(str(error).split())}") from None
        self.input_names: list[str] = [value.name for value in self._session.get_inputs()]
        self.output_names: list[str] = [value.name for value in self._session.get_outputs()]

    def feeds(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Inputs by the names that the model has; by position where it has none of pyvm's names."""
        values = [np.asarray(value) for value in inputs.values()]
        if set(self.input_names) <= set(inputs):
            return {name: np.asarray(inputs[name]) for name in self.input_names}
        if len(values) != len(self.input_names):
            raise UsageError(f"pyvm has {len(values)} inputs, ONNX Runtime {len(self.input_names)}")
        return dict(zip(self.input_names, values, strict=True))

    def run(self, inputs: Mapping[str, Any]) -> list[np.ndarray]:
        """The outputs of one call, in the order of the model."""
        return [np.asarray(value) for value in self.call(self.feeds(inputs))]

    def call(self, feeds: dict[str, np.ndarray]) -> list[Any]:
        """One call with inputs that `feeds` made; what timings measure."""
        try:
            outputs: list[Any] = self._session.run(None, feeds)
        except Exception as error:  # as above
            raise UsageError(f"ONNX Runtime cannot run the model: {' '.join(str(error).split())}") from None
        return outputs
