"""Explanations of executables: what every instruction works on, does and costs, where its data lies, and why.

`VMExecutable.explain()` and `pyvm explain` are the doors. `analysis` follows the bytecode without running it, `costs`
knows what kernels do, `memory` finds buffers and how long they matter, `build` puts it together as the plain data of
`model`; `text`, `page` (HTML), `memory_picture` and `graph_picture` show it. Works for executables of any compiler.
"""

from .build import explain
from .costs import CATEGORIES
from .model import (
    Buffer,
    Explanation,
    FunctionExplanation,
    Instruction,
    MemoryFigures,
    Operand,
    Storage,
    Totals,
)

__all__ = [
    "CATEGORIES",
    "Buffer",
    "Explanation",
    "FunctionExplanation",
    "Instruction",
    "MemoryFigures",
    "Operand",
    "Storage",
    "Totals",
    "explain",
]
