"""The dimensions of a model's inputs, fixed by the caller or symbolic, and the names of all symbols."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from pyvm.ir import Prim, SymVar
from vmcore.errors import FrontendError


class Dimensions:
    """Turns the shapes that a graph declares into dimensions, and hands out symbols.

    Parameters
    ----------
    shape_dict : mapping
        What the caller fixes: shapes by input, sizes by name of a dimension.
    """

    def __init__(self, shape_dict: Mapping[str, object]) -> None:
        self._given = dict(shape_dict)
        self._by_name: dict[str, SymVar] = {}
        self._taken = {"min", "max"}  # functions in the text of a shape expression
        self._n_fresh = 0

    def fresh(self, hint: str, nonnegative: bool = True) -> SymVar:
        """A new symbol, called `hint` if that is free and an identifier."""
        name = re.sub(r"\W+", "_", hint).strip("_") or "d"
        if not name[0].isalpha():
            name = f"d{name}"
        candidate = name
        while candidate in self._taken:
            self._n_fresh += 1
            candidate = f"{name}_{self._n_fresh}"
        self._taken.add(candidate)
        return SymVar(candidate, nonnegative)

    def of_input(self, value: onnx.ValueInfoProto) -> list[Prim]:
        """The shape of an input."""
        name, tensor = value.name, value.type.tensor_type
        given = self._given.get(name)
        if given is not None and not (isinstance(given, Sequence) and not isinstance(given, str)):
            raise FrontendError(f"shape_dict[{name!r}] must be a shape, got {given!r}")
        if not tensor.HasField("shape"):
            if given is None or None in given:
                raise FrontendError(f"input {name!r} has no shape in the model; give it with shape_dict")
            return [_fixed(dim, name) for dim in given]
        dims = list(tensor.shape.dim)
        if given is not None and len(given) != len(dims):
            raise FrontendError(f"shape_dict[{name!r}] is {tuple(given)}, the input has {len(dims)} dimensions")
        shape: list[Prim] = []
        for i, dim in enumerate(dims):
            declared = self._declared(dim, f"{name}_{i}")
            if given is None or given[i] is None:
                shape.append(declared)
                continue
            fixed = _fixed(given[i], name)
            if isinstance(declared, int) and declared != fixed:
                raise FrontendError(f"shape_dict[{name!r}] is {tuple(given)}, dimension {i} of the input is {declared}")
            shape.append(fixed)
        return shape

    def _declared(self, dim: onnx.TensorShapeProto.Dimension, hint: str) -> Prim:
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            return dim.dim_value
        if not re.search(r"\w", dim.dim_param):
            return self.fresh(hint)  # no name, or one such as "?", which says nothing about equality
        if dim.dim_param in self._given:
            return _fixed(self._given[dim.dim_param], dim.dim_param)
        if dim.dim_param not in self._by_name:
            self._by_name[dim.dim_param] = self.fresh(dim.dim_param)
        return self._by_name[dim.dim_param]

    def refuse_unknown(self, inputs: Sequence[onnx.ValueInfoProto]) -> None:
        """Raises if the caller fixes something that no input has."""
        names = [value.name for value in inputs]
        dims = {dim.dim_param for value in inputs for dim in value.type.tensor_type.shape.dim} - {""}
        unknown = [key for key in self._given if key not in names and key not in dims]
        if unknown:
            listed = ", ".join(map(repr, unknown))
            raise FrontendError(
                f"shape_dict names {listed}; the inputs are {names}, the symbolic dimensions {sorted(dims)}"
            )


def _fixed(value: object, name: str) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 0:
        raise FrontendError(f"shape_dict[{name!r}]: {value!r} is not a dimension")
    return int(value)
