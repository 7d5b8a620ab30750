"""The `pyvm` command. Each sub-command is a module with HELP, `configure(parser)` and `run(args) -> exit code`.

Exit codes: 0 done; 1 the task failed (a model does not compile or run, a check found a difference, a program was
refused); 2 the command line is wrong or a file that it names cannot be used. Errors are one line on stderr;
PYVM_TRACEBACK=1 adds the Python traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

import pyvm
from pyvm.cli import asm, bench, demo, dis, explain, profile, run, verify
from pyvm.cli import compile as compile_command
from pyvm.cli.common import UsageError
from pyvm.errors import FormatError, VersionError, VMError

COMMANDS = {
    "compile": compile_command,
    "run": run,
    "dis": dis,
    "asm": asm,
    "verify": verify,
    "explain": explain,
    "bench": bench,
    "profile": profile,
    "demo": demo,
}

EPILOG = """\
exit codes: 0 done, 1 the task failed, 2 wrong usage or unusable file
environment: PYVM_NUM_THREADS threads for kernels, PYVM_TRACEBACK=1 Python traceback on errors
"""


def make_parser() -> argparse.ArgumentParser:
    """The whole command line as an argparse parser."""
    parser = argparse.ArgumentParser(
        prog="pyvm",
        description="Compile models to bytecode, look at it, run it and time it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pyvm {pyvm.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.configure(command)
        command.set_defaults(run=module.run)
    return parser


def _one_line(error: BaseException) -> str:
    """The message and its first note (the position) on one line; the name of the class where there is no message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines) or type(error).__name__
    notes = getattr(error, "__notes__", ())
    return f"{text} ({' '.join(notes[0].split())})" if notes else text


def _report(message: str) -> None:
    print(f"pyvm: error: {message}", file=sys.stderr)
    if os.environ.get("PYVM_TRACEBACK") == "1":
        traceback.print_exc()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        args = make_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed help or what is wrong
        return stop.code if isinstance(stop.code, int) else 2
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader (a pager, head) has gone; nothing is left to say and nowhere to say it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("pyvm: interrupted", file=sys.stderr)
        return 130
    except UsageError as error:
        _report(str(error))
        return 2
    except OSError as error:
        _report(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
        return 2
    except (FormatError, VersionError) as error:
        _report(_one_line(error))
        return 2
    except VMError as error:
        _report(_one_line(error))
        return 1
    except Exception as error:
        _report(f"{type(error).__name__}: {_one_line(error)}")
        return 1
