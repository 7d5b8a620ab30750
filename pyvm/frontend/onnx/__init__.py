"""The ONNX frontend. The only part of pyvm that imports the `onnx` package (`pip install 'pyvm[onnx]'`)."""

try:
    import onnx as _onnx  # noqa: F401
except ImportError as error:  # pragma: no cover - depends on the environment
    from vmcore.errors import FrontendError

    raise FrontendError("reading ONNX models needs the onnx package: pip install 'pyvm[onnx]'") from error

from pyvm.frontend.onnx.importer import from_onnx
from pyvm.frontend.onnx.registry import supported_ops

__all__ = ["from_onnx", "supported_ops"]
