"""A table of programs with their oracles in numpy: written with a builder or as text, compiled once for all sizes."""

from tests.programs import control, tensors, values
from tests.programs.check import check_program, random_value
from tests.programs.table import PROGRAMS, Draw, Program, relu, softmax

__all__ = [
    "PROGRAMS",
    "Draw",
    "Program",
    "check_program",
    "control",
    "random_value",
    "relu",
    "softmax",
    "tensors",
    "values",
]
