"""The networks that are measured: real files that `tests/models/fetch.py` brings, and light ones with seeded weights.

Built and compiled files are kept in the folder of the models, $PYVM_MODELS or a temporary one.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LIGHT = "light_"


@dataclass(frozen=True)
class Network:
    """A network and the shape of its one input."""

    name: str
    shape: tuple[int, ...]

    def input(self) -> np.ndarray:
        """A seeded random input."""
        return np.random.default_rng(1).standard_normal(self.shape, dtype=np.float32)


# From small to large; batch 1.
NETWORKS = (
    Network("ppocr_cls", (1, 3, 48, 192)),
    Network("oww_embedding", (1, 76, 32, 1)),
    Network("mtcnn_pnet", (1, 240, 320, 3)),
    Network("light_squeezenet", (1, 3, 224, 224)),
    Network("light_shufflenet", (1, 3, 224, 224)),
    Network("light_bvlc_alexnet", (1, 3, 224, 224)),
    Network("light_inception_v1", (1, 3, 224, 224)),
    Network("light_inception_v2", (1, 3, 224, 224)),
    Network("light_densenet121", (1, 3, 224, 224)),
    Network("light_resnet50", (1, 3, 224, 224)),
    Network("light_zfnet512", (1, 3, 224, 224)),
    Network("light_vgg19", (1, 3, 224, 224)),
)


def network(name: str) -> Network:
    """The network called `name`."""
    return next(entry for entry in NETWORKS if entry.name == name)


def folder() -> Path:
    """Where files are kept."""
    if "PYVM_MODELS" not in os.environ:
        temporary = tempfile.mkdtemp(prefix="pyvm-bench-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        os.environ["PYVM_MODELS"] = temporary
    path = Path(os.environ["PYVM_MODELS"])
    path.mkdir(parents=True, exist_ok=True)
    return path


def onnx_file(net: Network) -> Path:
    """The .onnx file.

    Raises
    ------
    FileNotFoundError
        If it has to be fetched first.
    """
    path = folder() / f"{net.name}.onnx"
    if path.is_file():
        return path
    if not net.name.startswith(LIGHT):
        raise FileNotFoundError(f"{net.name}.onnx is not in {path.parent}: run `python tests/models/fetch.py`")
    from tests.models.light import light_model

    partial = path.with_suffix(".partial")
    partial.write_bytes(light_model(net.name.removeprefix(LIGHT)).SerializeToString())
    partial.replace(path)
    return path


def vmx_file(net: Network) -> Path:
    """A freshly compiled .vmx file."""
    import pyvm

    path = folder() / f"{net.name}.vmx"
    pyvm.compile(str(onnx_file(net))).save(path)
    return path
