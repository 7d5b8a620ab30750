"""Reading ONNX protobufs: files, element types, tensors, attributes. What is malformed raises `FrontendError`."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, numpy_helper

from pyvm.files import open_to_read
from vmcore.errors import FrontendError

# Element types that the IR has. Strings, complex numbers, 8-bit floats and types below 8 bits are not among them.
_DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT8: "int8",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.UINT8: "uint8",
    TensorProto.UINT16: "uint16",
    TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64",
    TensorProto.BOOL: "bool",
}

_MAX_DENSE_BYTES = 1 << 27  # of a sparse tensor: a file of some bytes must not ask for gigabytes
_MAX_NDIM = 64
_MAX_MODEL_BYTES = (1 << 31) - 1  # of a protobuf message; larger models keep their weights beside it


def load_model(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> tuple[onnx.ModelProto, Path | None]:
    """The model, and the folder its external data lies in (None for a model that did not come from a file)."""
    if isinstance(model, onnx.ModelProto):
        return model, None
    folder: Path | None = None
    what = "the given bytes"
    if not isinstance(model, (bytes, bytearray, memoryview)):
        if not isinstance(model, (str, os.PathLike)):
            raise FrontendError(
                "expected an IRModule, a pyvm.function, or the path, bytes or ModelProto of an ONNX model, got "
                f"{type(model).__name__}"
            )
        path = Path(model)
        what, folder = str(path), path.parent
        try:
            with open_to_read(path) as file:
                model = file.read()  # not of a size: that much would be allocated first
        except OSError as error:
            raise FrontendError(f"cannot read {path}: {error.strerror or error}") from error
        except ValueError as error:  # a name that no file can have
            raise FrontendError(f"cannot read {what!a}: {error}") from error
    if len(model) > _MAX_MODEL_BYTES:
        raise FrontendError(f"{what}: more than {_MAX_MODEL_BYTES} bytes, which no ONNX model can have")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(bytes(model))
    except (DecodeError, ValueError, RuntimeError) as error:
        raise FrontendError(f"{what}: not an ONNX model: {error}") from error
    if not proto.HasField("graph"):
        raise FrontendError(f"{what}: not an ONNX model, or one without a graph ({len(model)} bytes)")
    for text in _names(proto):
        if isinstance(text, bytes):
            raise FrontendError(f"{what}: the name {text!r} is not UTF-8")
    return proto, folder


def _names(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """All names in a model; protobuf hands out bytes where one is not valid text."""
    for entry in model.opset_import:
        yield entry.domain
    for function in model.functions:
        yield from (function.domain, function.name, *function.input, *function.output)
        for entry in function.opset_import:
            yield entry.domain
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        for graph in graphs:
            for value in (*graph.input, *graph.output):
                yield value.name
                yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
            for tensor in graph.initializer:
                yield tensor.name
                yield from (text for entry in tensor.external_data for text in (entry.key, entry.value))
            nodes.extend(graph.node)
        for node in nodes:
            yield from (node.domain, node.op_type, node.name, *node.input, *node.output)
            yield from (text for attribute in node.attribute for text in (attribute.name, attribute.ref_attr_name))
        attributes = [attribute for node in nodes for attribute in node.attribute]
        graphs = [graph for a in attributes for graph in (a.graphs if not a.HasField("g") else (a.g, *a.graphs))]
        nodes = []


def element_type(code: int, what: str) -> str:
    """The dtype of an ONNX element type; `what` names its owner in the error."""
    dtype = _DTYPES.get(code)
    if dtype is None:
        known = TensorProto.DataType.Name(code) if code in TensorProto.DataType.values() else f"number {code}"
        raise FrontendError(f"{what} has element type {known}; the supported ones are {', '.join(_DTYPES.values())}")
    return dtype


def element_code(dtype: str) -> int:
    """The ONNX element type of a dtype."""
    return next(code for code, name in _DTYPES.items() if name == dtype)


def tensor_array(tensor: TensorProto, folder: Path | None) -> np.ndarray:
    """The values of an initializer or of a tensor attribute."""
    what = f"tensor {tensor.name!r}"
    dtype = element_type(tensor.data_type, what)
    dims = tuple(tensor.dims)
    if any(dim < 0 for dim in dims):
        raise FrontendError(f"{what} has shape {dims}")
    if len(dims) > _MAX_NDIM:
        raise FrontendError(f"{what} has {len(dims)} dimensions, at most {_MAX_NDIM} are supported")
    if tensor.data_location == TensorProto.EXTERNAL:
        return _external_array(tensor, dtype, dims, folder)
    if tensor.HasField("raw_data"):
        data = tensor.raw_data  # a copy: protobuf has no view of its bytes
        if len(data) != math.prod(dims) * numpy_dtype(dtype).itemsize:
            raise FrontendError(f"{what}: shape {dims} of {dtype} does not fit in {len(data)} bytes of data")
        if _is_giant(dims):
            raise FrontendError(f"{what}: shape {dims} is too large, even for no elements")
        array = np.frombuffer(data, _little_endian(dtype)).reshape(dims)
        return array.view(np.uint8) != 0 if dtype == "bool" else array
    try:
        array = numpy_helper.to_array(tensor)
    except Exception as error:  # numpy_helper documents none of what it raises
        raise FrontendError(f"{what} of shape {dims} and {dtype} cannot be read: {error}") from error
    return _checked(array, dtype, dims, what)


def _is_giant(dims: tuple[int, ...]) -> bool:
    """Whether numpy refuses a shape even where it has no elements."""
    return math.prod(filter(None, dims)) > 1 << 48


def sparse_array(tensor: onnx.SparseTensorProto, folder: Path | None) -> np.ndarray:
    """A sparse tensor, made dense."""
    values = tensor_array(tensor.values, folder)
    indices = tensor_array(tensor.indices, folder)
    dims = tuple(tensor.dims)
    what = f"sparse tensor {tensor.values.name!r} of shape {dims}"
    if any(dim < 0 for dim in dims) or len(dims) > _MAX_NDIM or _is_giant(dims):
        raise FrontendError(f"{what}: the shape is malformed")
    size = math.prod(dims)
    if size * values.itemsize > _MAX_DENSE_BYTES:
        raise FrontendError(f"{what}: {size * values.itemsize} bytes when made dense; the limit is {_MAX_DENSE_BYTES}")
    if values.ndim != 1 or indices.dtype != np.int64 or indices.shape not in ((len(values),), (len(values), len(dims))):
        raise FrontendError(f"{what}: values {values.shape} and indices {indices.shape} of {indices.dtype} do not fit")
    dense = np.zeros(dims, values.dtype)
    limits = size if indices.ndim == 1 else np.array(dims, np.int64)
    if np.any((indices < 0) | (indices >= limits)):
        raise FrontendError(f"{what}: an index lies outside the shape")
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense


def numpy_dtype(dtype: str) -> np.dtype:
    """The numpy dtype of an IR dtype. That of bfloat16 is in ml_dtypes, which recent versions of onnx depend on."""
    if dtype != "bfloat16":
        return np.dtype(dtype)
    try:
        import ml_dtypes
    except ImportError as error:
        raise FrontendError("bfloat16 constants need the package ml_dtypes") from error
    return np.dtype(ml_dtypes.bfloat16)


def _little_endian(dtype: str) -> np.dtype:
    """The numpy dtype of an element as files hold it."""
    return numpy_dtype(dtype) if dtype == "bfloat16" else numpy_dtype(dtype).newbyteorder("<")


def _checked(array: np.ndarray, dtype: str, dims: tuple[int, ...], what: str) -> np.ndarray:
    if array.shape != dims or array.dtype != numpy_dtype(dtype):
        raise FrontendError(f"{what} declares shape {dims} of {dtype}, its data are {array.shape} of {array.dtype}")
    return array


def _external_array(tensor: TensorProto, dtype: str, dims: tuple[int, ...], folder: Path | None) -> np.ndarray:
    what = f"tensor {tensor.name!r}"
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    if folder is None:
        raise FrontendError(f"{what} lies in the external file {location!r}: pass the path of the model, not its bytes")
    base = folder.resolve()
    try:
        path = (base / location).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a NUL
        raise FrontendError(f"{what}: external data location {location!r} is no path: {error}") from error
    # A model is untrusted: it must not make us read files of its choice.
    if not location or os.path.isabs(location) or not path.is_relative_to(base) or path == base:
        raise FrontendError(f"{what}: external data location {location!r} is outside the model's folder")
    expected = math.prod(dims) * numpy_dtype(dtype).itemsize
    try:
        offset = int(fields.get("offset", 0))
        length = int(fields.get("length", expected))
    except ValueError as error:
        raise FrontendError(f"{what}: external data offset and length must be numbers: {fields}") from error
    if length != expected or offset < 0:
        raise FrontendError(f"{what}: shape {dims} of {dtype} needs {expected} bytes, external data gives {length}")
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for a writer
            raise FrontendError(f"{what}: external data {location!r} is not a regular file")
        with path.open("rb") as file:
            missing = offset + length - os.fstat(file.fileno()).st_size
            if missing <= 0:
                file.seek(offset)
                data = file.read(length)
                missing = length - len(data)
    except OSError as error:
        raise FrontendError(f"{what}: cannot read external data {location!r}: {error.strerror or error}") from error
    if missing > 0:
        raise FrontendError(f"{what}: external file {location!r} ends {missing} bytes too early")
    return np.frombuffer(data, _little_endian(dtype)).reshape(dims)


def attribute_value(attribute: AttributeProto, folder: Path | None) -> Any:
    """An attribute as int, float, str, numpy array, protobuf graph, or list of these."""
    kind = attribute.type
    if kind == AttributeProto.TENSOR:
        return tensor_array(attribute.t, folder)
    if kind == AttributeProto.SPARSE_TENSOR:
        return sparse_array(attribute.sparse_tensor, folder)
    if kind == AttributeProto.TENSORS:
        return [tensor_array(tensor, folder) for tensor in attribute.tensors]
    try:
        value = onnx.helper.get_attribute_value(attribute)
    except ValueError as error:
        raise FrontendError(f"attribute {attribute.name!r}: {error}") from error
    if kind == AttributeProto.STRING:
        return value.decode("utf-8", "replace")
    if kind == AttributeProto.STRINGS:
        return [item.decode("utf-8", "replace") for item in value]
    return list(value) if kind in (AttributeProto.INTS, AttributeProto.FLOATS) else value
