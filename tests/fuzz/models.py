"""ONNX models through the frontend: the models of ONNX's own suite, changed as protobufs and as bytes."""

from __future__ import annotations

import functools
import math
import os
import pickle
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

import pyvm
from pyvm import errors
from pyvm.frontend.onnx import supported_ops
from tests import ROOT
from tests.fuzz.watch import COMPILE_BYTES, FAST, guarded, run_executable

INTS = (0, 1, -1, 2, 3, -2, 5, 64, 1000, 2**20, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**31), -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-40, 1e38, float("nan"), float("inf"), float("-inf"))
DIMS = (0, 1, 2, 3, 5, 17, 4096, 2**20, 2**31, 2**40, 2**62, 2**63 - 1, -1, -3)
NAMES = ("", "x", "y", "output", "a b", "0", "é", "\n", "main", "n", "a" * 1000)
TEXTS = ("", "SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET", "linear", "cubic", "nearest", "constant", "reflect", "edge",
         "wrap", "forward", "reverse", "bidirectional", "ij,jk->ik", "...i,i...->", "i->ii", "half_pixel", "asymmetric",
         "add", "mul", "none", "tanh", "Relu")  # fmt: skip
LOCATIONS = ("weights.bin", "../weights.bin", "/etc/passwd", "/dev/zero", ".", "", "..", "a/../../b", "link", "folder",
             "weights.bin\0", "x" * 5000, "/proc/self/mem", "pipe", "é")  # fmt: skip
_MAX_MODEL = 20_000
_MAX_SUBGRAPHS = 60
_MAX_TWICE = 4000


class Template(NamedTuple):
    """A model as bytes, and arrays for its inputs."""

    data: bytes
    inputs: tuple[np.ndarray, ...]


def _cache_file() -> Path:
    return ROOT / "build" / "fuzz" / f"onnx-{onnx.__version__}.pickle"


@functools.cache
def templates() -> list[Template]:
    """The small models of the suite that compile as they are, beside some that must be refused.

    Generating them takes some seconds, so they are kept in build/.
    """
    path = _cache_file()
    if not path.exists():
        from tests.conformance.suite import load_cases

        found = []
        for case in load_cases(("node", "simple", "pytorch-operator", "pytorch-converted")):
            data = case.model.SerializeToString()
            arrays = case.data_sets[0][0] if case.data_sets else []
            plain = tuple(a for a in arrays if isinstance(a, np.ndarray) and a.dtype.kind in "biuf")
            if len(data) < _MAX_MODEL and sum(a.nbytes for a in plain) < 1 << 16:
                found.append((data, plain))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(pickle.dumps(found))
        temporary.replace(path)
    usable = []
    known = {name for _, name in _operators()}
    for i, (data, arrays) in enumerate(pickle.loads(path.read_bytes())):
        graph = ModelProto.FromString(data).graph
        if any(node.op_type not in known for node in graph.node):
            continue
        if i % 8 and not all(_is_common(value) for value in (*graph.input, *graph.output)):
            continue  # refused at once: what is changed inside is hardly ever looked at
        usable.append(Template(data, arrays))
        if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
            usable += [usable[-1]] * 8  # there are few with subgraphs
    return usable


def _is_common(value: onnx.ValueInfoProto) -> bool:
    """Whether it is a tensor of an element type that is supported."""
    return value.type.HasField("tensor_type") and value.type.tensor_type.elem_type in (*range(1, 8), *range(9, 14), 16)


@functools.cache
def _operators() -> list[tuple[str, str]]:
    return [("", name.rsplit(".", 1)[-1]) for name in sorted(supported_ops())]


def _graphs(graph: GraphProto, depth: int = 0) -> Iterator[GraphProto]:
    yield graph
    if depth > 20:
        return
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g, depth + 1)


def _given(graph: GraphProto) -> list[str]:
    """Values that every node of the graph may read."""
    return [value.name for value in graph.input] + [t.name for t in graph.initializer] or [""]


def _values(graph: GraphProto) -> list[str]:
    names = [value.name for value in (*graph.input, *graph.output)] + [t.name for t in graph.initializer]
    return names + [name for node in graph.node for name in (*node.input, *node.output)] or [""]


# ---- one change each


def _change_attribute(model: ModelProto, graph: GraphProto, rng: random.Random) -> None:
    nodes = [node for node in graph.node if node.attribute]
    if not nodes:
        return _add_attribute(model, graph, rng)
    node = rng.choice(nodes)
    at = rng.randrange(len(node.attribute))
    attribute, edit = node.attribute[at], rng.random()
    if edit < 0.06:
        del node.attribute[at]
    elif edit < 0.1:
        node.attribute.append(attribute)
    elif edit < 0.14:
        attribute.name = rng.choice(NAMES)
    elif edit < 0.2:
        attribute.type = rng.randrange(15)
    elif attribute.type == AttributeProto.INT:
        attribute.i = rng.choice((*INTS, max(min(attribute.i, 2**62), -(2**62)) + 1, -max(attribute.i, -(2**62))))
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = rng.choice(FLOATS)
    elif attribute.type == AttributeProto.STRING:
        attribute.s = rng.choice((*(text.encode() for text in TEXTS), b"\xff\xfe"))
    elif attribute.type == AttributeProto.INTS:
        _change_ints(attribute.ints, rng)
    elif attribute.type == AttributeProto.TENSOR:
        _change_tensor(attribute.t, rng)
    elif attribute.type == AttributeProto.GRAPH:
        _change_graph(model, attribute.g, rng)
    elif attribute.type == AttributeProto.FLOATS and attribute.floats:
        attribute.floats[rng.randrange(len(attribute.floats))] = rng.choice(FLOATS)
    elif attribute.type == AttributeProto.STRINGS and attribute.strings:
        attribute.strings[rng.randrange(len(attribute.strings))] = rng.choice(TEXTS).encode()


@functools.cache
def _attributes(op_type: str) -> list[tuple[str, str]]:
    """Names and kinds of an operator's attributes."""
    if not onnx.defs.has(op_type):
        return []
    return [(name, a.type.name) for name, a in sorted(onnx.defs.get_schema(op_type).attributes.items())]


def _change_ints(ints: Any, rng: random.Random) -> None:
    edit = rng.random()
    if edit < 0.6 and len(ints):
        ints[rng.randrange(len(ints))] = rng.choice(INTS)
    elif edit < 0.75 and len(ints):
        del ints[rng.randrange(len(ints))]
    elif edit < 0.97:
        ints.insert(rng.randrange(len(ints) + 1), rng.choice(INTS))
    else:
        ints.extend([rng.choice((0, 1, 2))] * rng.choice((10, 70, 1000)))


def _add_attribute(model: ModelProto, graph: GraphProto, rng: random.Random) -> None:
    if not graph.node:
        return
    node = rng.choice(graph.node)
    name = rng.choice(
        ("axis", "axes", "pads", "strides", "group", "to", "mode", "keepdims", "body", "then_branch", "perm")
    )
    value: Any = rng.choice((rng.choice(INTS), rng.choice(FLOATS), rng.choice(TEXTS), [rng.choice(INTS), 1], [0.5]))
    if rng.random() < 0.8:  # one that the operator has, of the right type
        known = _attributes(node.op_type)
        if not known:
            return
        name, kind = rng.choice(known)
        of_kind = {
            "INT": rng.choice((0, 1, 1, rng.choice(INTS))), "FLOAT": rng.choice(FLOATS), "STRING": rng.choice(TEXTS),
            "INTS": [rng.choice((0, 1, 1, 2, rng.choice(INTS))) for _ in range(rng.choice((1, 2, 2, 4)))],
            "FLOATS": [rng.choice(FLOATS)],
        }  # fmt: skip
        value = of_kind.get(kind, value)
        for i, attribute in enumerate(node.attribute):
            if attribute.name == name:
                del node.attribute[i]
                break
    node.attribute.append(helper.make_attribute(name, value))


def _change_tensor(tensor: TensorProto, rng: random.Random) -> None:
    edit = rng.random()
    if edit < 0.3:
        _change_ints(tensor.dims, rng) if rng.random() < 0.5 else tensor.dims.append(rng.choice(DIMS))
    elif edit < 0.45:
        tensor.data_type = rng.choice((*range(24), 100, -1))
    elif edit < 0.6 and tensor.HasField("raw_data"):
        raw = bytearray(tensor.raw_data)
        if raw and rng.random() < 0.7:
            size = min(8, len(raw))
            at = rng.randrange(len(raw) - size + 1)
            raw[at : at + size] = (rng.choice(INTS) & (1 << 8 * size) - 1).to_bytes(size, "little")
        else:
            del raw[rng.randrange(len(raw) + 1) :]
        tensor.raw_data = bytes(raw)
    elif edit < 0.75:
        for field in (tensor.int64_data, tensor.int32_data, tensor.float_data, tensor.double_data, tensor.uint64_data):
            if len(field):
                integer = field is tensor.int64_data
                field[rng.randrange(len(field))] = rng.choice(INTS) if integer else rng.choice((0, 1, 2, 7))
                if rng.random() < 0.3:
                    del field[rng.randrange(len(field))]
    elif edit < 0.9:
        tensor.data_location = TensorProto.EXTERNAL
        fields = {"location": rng.choice(LOCATIONS)}
        if rng.random() < 0.5:
            fields["offset"] = rng.choice(("0", "4", "-1", "x", "", str(2**63 - 1), str(2**64), "9" * 5000, "1e3"))
        if rng.random() < 0.5:
            fields["length"] = rng.choice(("0", "4", "24", "-1", "x", str(2**40), str(2**63)))
        for key, value in fields.items():
            tensor.external_data.add(key=key, value=value)
        if rng.random() < 0.7:
            tensor.ClearField("raw_data")
    else:
        tensor.name = rng.choice(NAMES)


def _change_initializer(model: ModelProto, graph: GraphProto, rng: random.Random) -> None:
    if graph.initializer and rng.random() < 0.8:
        _change_tensor(rng.choice(graph.initializer), rng)
        return
    name = rng.choice(_values(graph) if rng.random() < 0.1 else _given(graph))  # defined twice, or now a constant
    dims = [rng.choice((0, 1, 2, 3)) for _ in range(rng.randrange(3))]
    array = np.asarray(
        rng.choice((np.ones(dims, np.float32), np.array(rng.choice(INTS)), np.full(dims, rng.choice(INTS))))
    )
    for i, value in enumerate(graph.input):
        if value.name == name and rng.random() < 0.7:
            tensor_type = value.type.tensor_type
            shape = [dim.dim_value for dim in tensor_type.shape.dim]
            plain = _is_common(value) and tensor_type.elem_type != TensorProto.BFLOAT16
            if plain and all(0 <= dim < 100 for dim in shape) and math.prod(shape) < 1000:
                dtype = helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)
                array = np.full(shape, rng.choice((0, 1, 1, 2, 7)), dtype)
            if rng.random() < 0.5:
                del graph.input[i]
            break
    tensor = onnx.numpy_helper.from_array(array, name)
    if rng.random() < 0.1:
        graph.sparse_initializer.add(values=tensor, indices=tensor, dims=[rng.choice(DIMS) for _ in range(2)])
    else:
        graph.initializer.append(tensor)


def _change_type(model: ModelProto, graph: GraphProto, rng: random.Random) -> None:
    values = [*graph.input, *graph.output, *graph.value_info]
    if not values:
        return
    value, edit = rng.choice(values), rng.random()
    tensor = value.type.tensor_type
    if edit < 0.15:
        tensor.elem_type = rng.choice((*range(24), 100))
    elif edit < 0.2:
        value.type.Clear()
    elif edit < 0.25:
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1
    elif edit < 0.3:
        tensor.ClearField("shape")
    elif edit < 0.4:
        tensor.shape.dim.add(dim_value=rng.choice(DIMS))
    elif not tensor.shape.dim:
        return
    elif edit < 0.5:
        del tensor.shape.dim[rng.randrange(len(tensor.shape.dim))]
    elif edit < 0.75:
        rng.choice(tensor.shape.dim).dim_value = rng.choice(DIMS)
    elif edit < 0.95:
        rng.choice(tensor.shape.dim).dim_param = rng.choice(("n", "m", "n", *NAMES, "n+1", "2*n", "n//0"))
    else:
        rng.choice(tensor.shape.dim).Clear()


def _change_node(model: ModelProto, graph: GraphProto, rng: random.Random) -> None:
    if not graph.node:
        return
    at, edit = rng.randrange(len(graph.node)), rng.random()
    node = graph.node[at]
    if edit < 0.25:
        node.op_type = rng.choice(_operators())[1]
    elif edit < 0.28:
        node.op_type, node.domain = (
            rng.choice(("", "Nobody", "If", "Loop", "Scan")),
            rng.choice(("", "ai.onnx.ml", "x")),
        )
    elif edit < 0.5:
        names = node.input if rng.random() < 0.7 else node.output
        change = rng.random()
        if change < 0.6 and len(names):
            usual = [*_given(graph), *_given(model.graph), ""]
            names[rng.randrange(len(names))] = rng.choice(usual if rng.random() < 0.7 else _values(graph))
        elif change < 0.8 and len(names):
            del names[rng.randrange(len(names))]
        else:
            names.append(rng.choice(_given(graph) if rng.random() < 0.6 else (*_values(graph), *NAMES)))
    elif edit < 0.53:
        graph.node.append(node)  # each output twice
    elif edit < 0.84:
        copy = NodeProto()  # a node in the middle: between a value and those who read it
        copy.CopyFrom(node)
        copy.op_type = rng.choice(_operators())[1]
        if node.output:
            copy.input[:] = [node.output[0]] * rng.choice((1, 1, 2, 3))
            copy.output[:] = ["between"]
            for value in graph.output:
                if value.name == node.output[0]:
                    value.name = "between"
            graph.node.insert(at + 1, copy)
    elif edit < 0.88:
        del graph.node[at]
    elif edit < 0.94:
        nodes = list(graph.node)
        rng.shuffle(nodes)
        copies = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del graph.node[:]
        graph.node.extend(copies)
    elif node.output and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(node.output)  # a cycle


def _change_model(model: ModelProto, graph: GraphProto, rng: random.Random) -> None:
    edit = rng.random()
    if edit < 0.5 and model.opset_import:
        rng.choice(model.opset_import).version = rng.choice((*range(1, 27), 0, -1, 1000, 2**40))
    elif edit < 0.55:
        del model.opset_import[:]
    elif edit < 0.6:
        model.opset_import.add(domain=rng.choice(("", "x", "ai.onnx.ml")), version=rng.choice((1, 13, 2**62)))
    elif edit < 0.65:
        model.ir_version = rng.choice((0, 1, 2, 3, 8, 1000, 2**62))
    elif edit < 0.8:
        values = graph.output if rng.random() < 0.6 else graph.input
        change = rng.random()
        if change < 0.3 and len(values):
            del values[rng.randrange(len(values))]
        elif change < 0.6 and len(values):
            values.append(rng.choice(values))
        elif len(values):
            rng.choice(values).name = rng.choice((*NAMES, *_values(graph)))
    else:
        _add_function(model, graph, rng)


def _add_function(model: ModelProto, graph: GraphProto, rng: random.Random) -> None:
    """A node becomes a call of a function that holds it, and sometimes calls itself."""
    if not graph.node:
        return
    node = graph.node[rng.randrange(len(graph.node))]
    body = [NodeProto.FromString(node.SerializeToString())]
    inputs, outputs = [n for n in dict.fromkeys(node.input) if n], list(dict.fromkeys(node.output))
    if rng.random() < 0.15:
        body.append(helper.make_node("F", inputs, ["again"], domain="local"))
    if rng.random() < 0.3:  # doubling: as many nodes as 2 to the number of functions
        for i in range(30):
            inner = [helper.make_node(f"D{i + 1}", ["x"], ["t"], domain="local"),
                     helper.make_node(f"D{i + 1}", ["t"], ["y"], domain="local")]  # fmt: skip
            last = [helper.make_node("Neg", ["x"], ["y"])]
            opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
            model.functions.append(
                helper.make_function("local", f"D{i}", ["x"], ["y"], last if i == 29 else inner, opsets)
            )
        body = [helper.make_node("D0", inputs[:1], outputs[:1], domain="local")]
    opsets = [*model.opset_import, helper.make_opsetid("local", 1)]
    model.functions.append(helper.make_function("local", "F", inputs, outputs, body, opsets))
    if all(entry.domain != "local" for entry in model.opset_import):
        model.opset_import.add(domain="local", version=1)
    del node.attribute[:]
    node.op_type, node.domain = "F", "local"
    node.input[:] = inputs


def _nest(model: ModelProto, graph: GraphProto, rng: random.Random) -> None:
    """The nodes of a graph inside an If or a Loop, several deep."""
    if not graph.output or sum(1 for _ in _graphs(model.graph)) > _MAX_SUBGRAPHS:
        return
    for _ in range(rng.choice((1, 1, 2, 5, 40))):
        inner = GraphProto()
        inner.node.extend(graph.node)
        inner.output.extend(graph.output)
        inner.name = "inner"
        del graph.node[:]
        names = [value.name for value in inner.output]
        if rng.random() < 0.9:  # names inside differ from names outside, as they must
            for value in inner.output:
                for node in inner.node:
                    for used in (node.input, node.output):
                        used[:] = [f"{name}_in" if name == value.name else name for name in used]
                value.name += "_in"
        condition = onnx.numpy_helper.from_array(np.array(rng.random() < 0.5), "condition")
        count = onnx.numpy_helper.from_array(np.array(rng.choice((0, 1, 2, 10**6, 2**62, -1))), "count")
        if all(t.name != "condition" for t in graph.initializer):
            graph.initializer.extend([condition, count])
        free = next(
            (v.name for v in model.graph.input if v.type.tensor_type.elem_type == TensorProto.BOOL), "condition"
        )
        if rng.random() < 0.6:
            other = GraphProto(name="empty")
            if rng.random() < 0.5 and inner.ByteSize() < _MAX_TWICE:  # which doubles the model
                other.CopyFrom(inner)
            node = helper.make_node("If", [free], names, then_branch=inner, else_branch=other)
        else:
            inner.input.extend([
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            ])  # fmt: skip
            inner.node.append(helper.make_node("Identity", ["go"], ["goes"]))
            inner.output.insert(0, helper.make_tensor_value_info("goes", TensorProto.BOOL, []))
            node = helper.make_node(
                "Loop", [rng.choice(("count", "")), rng.choice(("condition", ""))], names, body=inner
            )
        graph.node.append(node)


_CHANGES = (
    (_change_attribute, 4), (_change_initializer, 3), (_change_type, 4), (_change_node, 5), (_change_model, 2),
    (_add_attribute, 1), (_nest, 1),
)  # fmt: skip


def _change_graph(model: ModelProto, graph: GraphProto, rng: random.Random) -> None:
    changes, weights = zip(*_CHANGES, strict=True)
    rng.choices(changes, weights)[0](model, graph, rng)


def mutated_model(rng: random.Random) -> Template:
    """A model with some changes."""
    template = rng.choice(templates())
    if rng.random() < 0.08:
        data = bytearray(template.data)
        for _ in range(rng.choice((1, 2, 4))):
            at = rng.randrange(len(data))
            edit = rng.random()
            if edit < 0.5:
                data[at] ^= 1 << rng.randrange(8)
            elif edit < 0.7:
                data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            elif edit < 0.85:
                del data[at : at + rng.choice((1, 2, 10))]
            else:
                data[at:at] = data[at : at + rng.choice((1, 5, 50))]
            if not data:
                break
        if rng.random() < 0.1:
            del data[rng.randrange(len(data) + 1) :]
        return Template(bytes(data), template.inputs)
    model = ModelProto.FromString(template.data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        try:
            _change_graph(model, rng.choice(list(_graphs(model.graph))), rng)
        except (DecodeError, EncodeError):  # nested deeper than protobuf copies; what is there stays changed
            break
    try:
        return Template(model.SerializeToString(), template.inputs)
    except EncodeError:  # nested too deep
        return template


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """Where models lie that refer to other files: beside weights, a link that leads out, a folder."""
    made = tempfile.TemporaryDirectory(prefix="pyvm-fuzz-", dir=FAST)
    path = Path(made.name) / "models"
    path.mkdir()
    (path / "weights.bin").write_bytes(np.arange(64, dtype=np.float32).tobytes())
    (path / "folder").mkdir()
    (path / "link").symlink_to("/etc/hostname")
    os.mkfifo(path / "pipe")
    return made


def run_model(template: Template, rng: random.Random) -> str:
    """Compiles, and runs what was compiled."""
    source: Any = template.data
    if b"location" in source or rng.random() < 0.05:
        path = Path(folder().name) / "models" / "model.onnx"
        path.write_bytes(source)
        source = path
    shapes = rng.choice(
        (None, None, None, {"n": rng.choice(DIMS)}, {"x": [rng.choice((1, 2, 3, None)) for _ in range(3)]})
    )
    executable = guarded("compile", errors.CompileError, COMPILE_BYTES, lambda: pyvm.compile(source, shape_dict=shapes))
    if isinstance(executable, Exception):
        return type(executable).__name__
    return run_executable(executable, template.inputs, rng, "onnx")
