"""Compile an ONNX model, or a program in text form (.pyvm), to an executable file.

Symbolic dimensions of the model stay symbolic, and one executable serves all sizes; --dim and --shape fix them, which
lets the compiler plan all memory ahead.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyvm.cli.common import (
    Progress,
    UsageError,
    bytes_text,
    is_onnx,
    is_program,
    parse_dims,
    parse_shapes,
    require,
    seconds_text,
)

HELP = "compile an .onnx model or a .pyvm program to a .vmx executable"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="the model (.onnx) or program (.pyvm) to compile")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="where to write the executable (default: MODEL.vmx)"
    )
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="INPUT=D,D,...",
        help="fix the shape of an input; ? leaves a dimension as the model has it; may be repeated",
    )
    parser.add_argument(
        "--dim", action="append", default=[], metavar="NAME=N", help="fix a symbolic dimension; may be repeated"
    )
    parser.add_argument("--dump", type=Path, metavar="FOLDER", help="write the program after each pass as text here")
    parser.add_argument("--tvm", action="store_true", help="write TVM's VMExecutable format instead of .vmx")


def run(args: argparse.Namespace) -> int:
    """Compile, write, and print what came out."""
    import pyvm

    if not is_onnx(args.model) and not is_program(args.model):
        raise UsageError(f"{args.model}: neither an .onnx model nor a .pyvm program")
    if not args.model.is_file():
        raise UsageError(f"{args.model}: no such file")
    if is_onnx(args.model):
        require("onnx", f"{args.model}: reading ONNX models")
    output = args.output or args.model.with_suffix(".ro" if args.tvm else ".vmx")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"{output}: no such folder")
    fixed: dict[str, int | Sequence[int | None]] = {**parse_dims(args.dim), **parse_shapes(args.shape)}

    begin = time.perf_counter()
    with Progress(f"compiling {args.model.name}"):
        executable = pyvm.compile(args.model, shape_dict=fixed or None, dump=args.dump)
    elapsed = time.perf_counter() - begin

    if args.tvm:
        output.write_bytes(executable.to_bytes())
    else:
        executable.save(output)
    weights = [constant for constant in executable.constants if isinstance(constant, np.ndarray)]
    arenas = executable.arenas()
    arena_bytes = sum(arena for arena in arenas.values() if isinstance(arena, int))
    symbolic = "".join(f" + {arena}" for arena in arenas.values() if isinstance(arena, str))
    print(f"{args.model} -> {output} ({bytes_text(output.stat().st_size)})")
    for name, signature in executable.signatures.items():
        print(f"  {name}{signature}")
    print(f"  instructions  {len(executable.instr_offset)}")
    print(f"  constants     {len(weights)} tensors, {bytes_text(sum(weight.nbytes for weight in weights))}")
    print(f"  arena         {bytes_text(arena_bytes)}{symbolic} per call, for tensors inside the functions")
    print(f"  compile time  {seconds_text(elapsed)}")
    if args.dump is not None:
        print(f"  dump          {args.dump} ({len(list(args.dump.iterdir()))} files)")
    return 0
