"""Check that an executable is safe to run: file structure, and every rule that the dispatch loop relies on.

--full also compares the weights with their checksum, which loading puts off. Exit code 1 if a rule is broken.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pyvm.cli.common import Progress, UsageError
from pyvm.errors import ExecutableError

HELP = "check an executable without running it"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("model", type=Path, metavar="FILE", help="an executable (.vmx or TVM VMExecutable bytes)")
    parser.add_argument("--full", action="store_true", help="read all weights and compare their checksum")


def run(args: argparse.Namespace) -> int:
    """Load and verify."""
    import pyvm

    if not args.model.is_file():
        raise UsageError(f"{args.model}: no such file")
    with Progress(f"verifying {args.model.name}"):
        executable = pyvm.load_executable(args.model)
        try:
            executable.verify(full=args.full)
        except ExecutableError as error:
            error.add_note(f"in {args.model}")
            raise
    defined = [info.name for info in executable.functions if info.kind != 0]
    print(
        f"{args.model}: ok, {len(defined)} function(s), {len(executable.instr_offset)} instructions, "
        f"{len(executable.constants)} constants{', weights match their checksum' if args.full else ''}"
    )
    return 0
