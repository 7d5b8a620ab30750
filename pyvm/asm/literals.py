"""Names and constants as assembler text."""

from __future__ import annotations

import base64
import json
import re
import struct

import numpy as np

from vmcore.errors import FormatError
from vmcore.types import BitsArray, DataType, Shape, tensor_dtype

from ..constants import Constant, is_constant

_MAX_LISTED = 16  # tensors of up to so many elements are printed as numbers


_NAME = re.compile(r"[A-Za-z0-9_.$:/-]+\Z")
_PLAIN_PARAM = re.compile(r"(?!inf|nan|base64)[A-Za-z_][A-Za-z0-9_.$/-]*\Z")


def quoted(text: str) -> str:
    return json.dumps(text)


def function_text(name: str) -> str:
    return "@" + (name if _NAME.match(name) else quoted(name))


def param_text(name: str) -> str:
    return name if _PLAIN_PARAM.match(name) else quoted(name)


def dtype_text(dtype: DataType) -> str:
    """A name that `DataType` understands, or dtype(code, bits, lanes)."""
    try:
        if DataType(str(dtype)) == dtype:
            return str(dtype)
    except ValueError:
        pass
    return f"dtype({dtype.code}, {dtype.bits}, {dtype.lanes})"


def float_text(value: float) -> str:
    if value != value and struct.pack("<d", value) != struct.pack("<d", float("nan")):
        return f"float({struct.unpack('<Q', struct.pack('<d', value))[0]:#018x})"
    return repr(value)


def tensor_text(array: np.ndarray) -> str:
    head = f"tensor {dtype_text(tensor_dtype(array))} ({', '.join(map(str, array.shape))})"
    if array.size <= _MAX_LISTED and array.dtype.kind in "biuf" and not isinstance(array, BitsArray):
        numbers = [float_text(float(v)) if array.dtype.kind == "f" else str(int(v)) for v in array.reshape(-1)]
        text = f"[{', '.join(numbers)}]"
        # A decimal or a NaN may not survive the way through float64, and a bool may be neither 0 nor 1.
        if "float(" not in text and _listed(text, array.dtype) == array.tobytes():
            return f"{head} {text}"
    return f"{head} base64 {base64.b64encode(array.tobytes()).decode()}"


def _listed(text: str, dtype: np.dtype) -> bytes:
    values = [float(v) if dtype.kind == "f" else int(v) for v in text[1:-1].split(", ") if v]
    with np.errstate(over="ignore"):
        return np.array(values, dtype=np.float64 if dtype.kind == "f" else object).astype(dtype).tobytes()


def any_text(value: object) -> str:
    """A value that no pool holds, as it stands behind `any`. Raises FormatError if the assembler has no form for it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return f"[{', '.join(map(any_text, value))}]"
    raise FormatError(f"cannot be written as text: a constant of type {type(value).__name__}")


def constant_text(value: Constant) -> str:
    """A constant as the assembler reads it; of a value that is none, its `any` form. Raises FormatError."""
    if not is_constant(value):
        return f"any {any_text(value)}"
    if isinstance(value, np.ndarray):
        return tensor_text(value)
    if isinstance(value, Shape):
        return f"shape({', '.join(map(str, value))})"
    if isinstance(value, DataType):
        text = dtype_text(value)
        return text if text.startswith("dtype(") else f"dtype({text})"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, float):
        return float_text(value)
    return str(value)
