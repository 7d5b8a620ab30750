"""The table of programs, and how one gets into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyvm.ir import IRModule, SymVar, parse
from tests.ir_text import build

N, T = SymVar("n"), SymVar("t")
BATCHES = (0, 1, 2, 7, 64)
OTHER_SYMBOLS = {"t": 5, "m": 3}
FLOAT0, INT0, BOOL0 = "Tensor((), float32)", "Tensor((), int64)", "Tensor((), bool)"
Draw = Callable[[int, np.random.Generator], list[Any]]


@dataclass
class Program:
    """One program and its oracle.

    Attributes
    ----------
    module : IRModule
    oracle : callable
        The same in numpy.
    draw : callable, optional
        Arguments for a batch; random tensors of the parameters' shapes by default.
    batches : tuple of int
        Batches it is defined for.
    functions : mapping
        Python functions that it calls.
    """

    module: IRModule
    oracle: Callable[..., Any]
    draw: Draw | None = None
    batches: tuple[int, ...] = BATCHES
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


PROGRAMS: dict[str, Program] = {}


def written(oracle: Callable[..., Any], body: Callable[..., Any], draw: Draw | None = None, **params: Any) -> None:
    """Adds a program built by `body(bb, *params)`, under the name of its oracle."""
    PROGRAMS[oracle.__name__] = Program(build(body, False, **params), oracle, draw)


def text(oracle: Callable[..., Any], program: str, draw: Draw | None = None, **more: Any) -> None:
    """Adds a program in text form, under the name of its oracle."""
    PROGRAMS[oracle.__name__] = Program(parse(program), oracle, draw, **more)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def softmax(x: np.ndarray) -> np.ndarray:
    if not x.size:
        return x
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
