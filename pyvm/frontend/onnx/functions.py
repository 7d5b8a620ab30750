"""Functions: a model's own, and the bodies by which ONNX defines operators in terms of others.

A node of an operator without a converter is replaced by the nodes of its function. Some bodies depend on the types of
the node's inputs, which are known once the nodes before it are imported; so nodes are replaced one by one on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto

from pyvm.frontend.onnx.registry import Converter, find_converter
from vmcore.errors import FrontendError, UnsupportedOpError

_STANDARD_DOMAINS = ("", "ai.onnx")
Opsets = Mapping[str, int]


@dataclass(frozen=True)
class Body:
    """Nodes that replace a node, and the opsets that they are written in."""

    nodes: Sequence[NodeProto]
    opsets: Opsets


def opsets_of(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """Version by domain, "ai.onnx" being "". Raises FrontendError for a number that no opset has."""
    opsets = {standard_domain(entry.domain): entry.version for entry in imports}
    for domain, version in opsets.items():
        if not 0 < version < 1 << 31:
            raise FrontendError(f"opset {version} of domain {domain!r} is not in 1..{(1 << 31) - 1}")
    return opsets


def standard_domain(domain: str) -> str:
    """`domain`, with "" for either name of the standard operators."""
    return "" if domain in _STANDARD_DOMAINS else domain


def resolve(node: NodeProto, opsets: Opsets) -> tuple[str, int, Converter | None]:
    """Domain, opset and converter of a node."""
    domain = standard_domain(node.domain)
    # A domain that the model forgot to import has version 1, as other runtimes have it too.
    opset = opsets.get(domain, 1)
    return domain, opset, find_converter(domain, node.op_type, opset)


_MAX_NODES = 200_000  # that functions of a model may expand to: a file of some bytes must not ask for gigabytes
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "LSTM", "GRU", "RNN"})


def may_have_control_flow(nodes: Iterable[NodeProto], opsets: Opsets) -> bool:
    """Whether nodes may become branches and loops: some operators do, and what a function consists of is not known."""
    return any(node.op_type in _CONTROL_FLOW or resolve(node, opsets)[2] is None for node in nodes)


def _subgraphs(node: NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


class FunctionLibrary:
    """The functions that nodes of a model can be replaced by."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._own = {(standard_domain(f.domain), f.name): f for f in model.functions}
        self._n_expanded = 0
        self._n_nodes = 0
        self._sizes: dict[tuple[str, str], int] = {}  # nodes that a function of the model expands to
        self._looked_at: set[tuple[str, str]] = set()  # functions whose nodes have a converter, or are reported

    def refuse_unsupported(self, nodes: Sequence[NodeProto], opsets: Opsets) -> None:
        """Raises if there are nodes, also in functions known so far, without a converter and without a function.

        Raises
        ------
        UnsupportedOpError
            Lists all operators, each with its nodes.
        FrontendError
            Functions of the model call themselves, or expand to more than 200,000 nodes.
        """
        missing: dict[str, list[str]] = {}
        for node, opset, path in self._unsupported(nodes, opsets, (), ()):
            domain = standard_domain(node.domain)
            operator = f"{domain}.{node.op_type}" if domain else node.op_type
            name = "/".join((*path, node.name or f"-> {', '.join(node.output)}"))
            missing.setdefault(f"{operator} (opset {opset})", []).append(name)
        if missing:
            listed = "; ".join(f"{operator}: {', '.join(names)}" for operator, names in sorted(missing.items()))
            count = sum(map(len, missing.values()))
            raise UnsupportedOpError(f"{count} nodes use {len(missing)} unsupported operators: {listed}")
        for node in nodes:  # before anything is expanded: thirty functions that call the next one twice are 2^30 nodes
            if self._expanded_size([node], opsets) > _MAX_NODES:
                raise self._too_large(node)

    def _expanded_size(self, nodes: Sequence[NodeProto], opsets: Opsets) -> int:
        """Number of nodes once the model's own functions, which do not call themselves, are expanded."""
        total = len(nodes)
        for node in nodes:
            total += sum(self._expanded_size(graph.node, opsets) for graph in _subgraphs(node))
            domain, _, converter = resolve(node, opsets)
            key = domain, node.op_type
            if converter is not None or key not in self._own:
                continue
            if key not in self._sizes:
                function = self._own[key]
                self._sizes[key] = self._expanded_size(function.node, opsets_of(function.opset_import))
            total += self._sizes[key]
        return total

    @staticmethod
    def _too_large(node: NodeProto) -> FrontendError:
        return FrontendError(f"functions of the model expand to more than {_MAX_NODES} nodes, at {node.op_type!r}")

    def _unsupported(
        self, nodes: Sequence[NodeProto], opsets: Opsets, path: tuple[str, ...], open: tuple[tuple[str, str], ...]
    ) -> Iterator[tuple[NodeProto, int, tuple[str, ...]]]:
        for node in nodes:
            for graph in _subgraphs(node):
                yield from self._unsupported(graph.node, opsets, (*path, node.name or node.op_type), open)
            domain, opset, converter = resolve(node, opsets)
            if converter is not None:
                continue
            key = domain, node.op_type
            function = self._own.get(key)
            schema = schema_of(domain, node.op_type, opset)
            if function is not None:
                if key in open:
                    raise FrontendError(f"function {node.op_type!r} of the model calls itself")
                if key in self._looked_at:
                    continue
                inner = (*path, node.name or node.op_type)
                yield from self._unsupported(function.node, opsets_of(function.opset_import), inner, (*open, key))
                self._looked_at.add(key)
            elif schema is None or not (schema.has_function or schema.has_context_dependent_function):
                yield node, opset, path

    def expand(self, node: NodeProto, opsets: Opsets, input_types: Callable[[], list[onnx.TypeProto]]) -> Body:
        """What replaces `node`, which has no converter; `input_types` is asked only if the body depends on them."""
        domain, opset, _ = resolve(node, opsets)
        function = self._own.get((domain, node.op_type))
        schema = None if function is not None else schema_of(domain, node.op_type, opset)
        defaults: dict[str, AttributeProto] = {}
        if function is not None:
            inner_opsets = opsets_of(function.opset_import)
            defaults = {attribute.name: attribute for attribute in function.attribute_proto}
        else:
            assert schema is not None, "refuse_unsupported let the node pass"
            defaults = {
                name: attribute.default_value
                for name, attribute in schema.attributes.items()
                if attribute.default_value.type
            }
            complete = NodeProto()
            complete.CopyFrom(node)
            given = {attribute.name for attribute in node.attribute}
            complete.attribute.extend(value for name, value in defaults.items() if name not in given)
            function, version = _body_of_operator(schema, complete, opset, input_types)
            inner_opsets = {**opsets, domain: version, **opsets_of(function.opset_import)}
        self._n_expanded += 1
        self._n_nodes += len(function.node)
        if self._n_nodes > _MAX_NODES:
            raise self._too_large(node)
        nodes = _instantiate(node, function, defaults, f"{node.op_type}_{self._n_expanded}/")
        self.refuse_unsupported(nodes, inner_opsets)
        return Body(nodes, inner_opsets)


def schema_of(domain: str, op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    """What ONNX says about an operator; None if it says nothing for the opset."""
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None


def _body_of_operator(
    schema: onnx.defs.OpSchema, node: NodeProto, opset: int, input_types: Callable[[], list[onnx.TypeProto]]
) -> tuple[FunctionProto, int]:
    """The body written for the newest opset that is not newer than the model's, and that opset."""
    function = FunctionProto()
    versions = [version for version in schema.function_opset_versions if version <= opset]
    if schema.has_function and versions:
        function.ParseFromString(schema.get_function_with_opset_version(max(versions)))
        return function, max(versions)
    versions = [version for version in schema.context_dependent_function_opset_versions if version <= opset]
    if versions:
        types = [value.SerializeToString() for value in input_types()]
        make_body = schema.get_context_dependent_function_with_opset_version
        try:
            function.ParseFromString(make_body(max(versions), node.SerializeToString(), types))
        except (ValueError, RuntimeError) as error:
            raise FrontendError(f"{node.op_type}-{opset} (node {node.name!r}) cannot be expanded: {error}") from error
    if not function.node:
        raise FrontendError(f"{node.op_type}-{opset} (node {node.name!r}) is not defined for these types of inputs")
    return function, max(versions)


def _instantiate(
    node: NodeProto, function: FunctionProto, defaults: Mapping[str, AttributeProto], prefix: str
) -> list[NodeProto]:
    """The nodes of `function` with the node's inputs, outputs and attributes; inner values get names of their own."""
    names = {"": ""}
    for formal, actual in _pairs(function.input, node.input):
        names[formal] = actual
    for formal, actual in _pairs(function.output, node.output):
        if actual:
            names[formal] = actual
    attributes = {**defaults, **{attribute.name: attribute for attribute in node.attribute}}
    result = []
    for inner in function.node:
        copy = NodeProto()
        copy.CopyFrom(inner)
        copy.name = f"{node.name or node.op_type}/{inner.name or inner.op_type}"
        copy.ClearField("attribute")
        copy.attribute.extend(_bound(inner.attribute, attributes))
        for graph in _subgraphs(copy):
            _rename_outer(graph, names, prefix, attributes)
        copy.input[:] = [names.get(name, prefix + name) for name in inner.input]
        copy.output[:] = [names.get(name, prefix + name) for name in inner.output]
        result.append(copy)
    return result


def _rename_outer(
    graph: onnx.GraphProto, names: Mapping[str, str], prefix: str, attributes: Mapping[str, AttributeProto]
) -> None:
    """Gives the values that a subgraph reads from the function around it their new names, in place."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own.update(name for node in graph.node for name in node.output)
    seen = {**names, **{name: name for name in own}}
    for node in graph.node:
        node.input[:] = [seen.get(name, prefix + name) for name in node.input]
        bound = list(_bound(node.attribute, attributes))
        del node.attribute[:]
        node.attribute.extend(bound)
        for inner in _subgraphs(node):
            _rename_outer(inner, seen, prefix, attributes)
    for value in graph.output:
        value.name = seen.get(value.name, prefix + value.name)


def _pairs(formal: Sequence[str], actual: Sequence[str]) -> Iterator[tuple[str, str]]:
    for i, name in enumerate(formal):
        yield name, actual[i] if i < len(actual) else ""


def _bound(attributes: Iterable[AttributeProto], actual: Mapping[str, AttributeProto]) -> Iterator[AttributeProto]:
    """Attributes with references to the function's own replaced; those that refer to an absent one are left out."""
    for attribute in attributes:
        if not attribute.ref_attr_name:
            yield attribute
        elif attribute.ref_attr_name in actual:
            copy = AttributeProto()
            copy.CopyFrom(actual[attribute.ref_attr_name])
            copy.name = attribute.name
            yield copy
