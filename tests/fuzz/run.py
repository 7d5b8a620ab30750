"""Runs mutants in a child process that a supervisor watches: crashes, hangs and untyped errors are findings."""

from __future__ import annotations

import faulthandler
import mmap
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pyvm import errors
from pyvm.vm import VirtualMachine, deadline
from tests import ROOT
from tests.fuzz.kernels import run_kernel, templates
from tests.fuzz.mutate import mutant
from tests.fuzz.programs import CallbackError, programs

MEMORY_BYTES = 1 << 30  # address space beyond what the child has when it starts
DEADLINE_S = 0.5
HANG_S = 60.0
SLOW_S = 15.0
ALLOWED = (errors.VMError, CallbackError)
# Builtins written in Python: what a wrong number of arguments raises is up to Python.
PYTHON_BUILTINS = ("register_py_func()", "get_py_func()", "clear_py_func_registry()", "_call_py_func()", "_invoke")


class Finding(Exception):
    """A case that gave what must not be."""


def run_case(number: int, seed: int) -> str:
    """Mutates one program and runs it twice, or one call of a kernel; returns what came of it. Raises Finding."""
    rng = random.Random(f"{seed}/{number}")
    if number % 2:
        try:
            return run_kernel(rng)
        except MemoryError:
            return "MemoryError"  # numpy's, of an argument
        except Exception as error:
            raise Finding(f"kernel: {type(error).__name__}: {error}") from error
    known = programs()
    name, executable, inputs = known[rng.randrange(len(known))]
    changed = mutant(executable, rng)
    args = list(inputs())
    try:
        vm = VirtualMachine(changed, memory_cfg=rng.choice(("pooled", "pooled", "naive")))
        function = vm["main"]
        args = (args + [1] * 8)[: len(function.param_names)]
    except ALLOWED as error:
        return type(error).__name__
    except Exception as error:
        raise Finding(f"{name}: loading raised {type(error).__name__}: {error}") from error
    hooked = rng.random() < 0.1
    outcome = "ran"
    for turn in range(2):  # the second run meets what the first left in pools and caches
        if turn and hooked:
            vm.set_instrument(lambda *call: None)
        try:
            with deadline(DEADLINE_S):
                result = function(*args)
            _look_at(result)
        except ALLOWED as error:
            outcome = type(error).__name__
        except Exception as error:
            if isinstance(error, TypeError) and str(error).startswith(PYTHON_BUILTINS):
                return "TypeError"
            raise Finding(f"{name}: running raised {type(error).__name__}: {error}") from error
    return outcome


def _look_at(value: Any, depth: int = 0) -> None:
    """Touches every byte of small results."""
    if isinstance(value, tuple) and depth < 8:
        for item in value[:16]:
            _look_at(item, depth + 1)
    elif hasattr(value, "__dlpack__") and value.nbytes < 1 << 20:
        try:
            array = value.numpy()
        except TypeError:
            return  # an element type that numpy lacks
        array.tobytes()


def child(first: int, count: int, seed: int, progress: str) -> None:
    """Runs cases, writing the number of each before it into the file `progress`."""
    faulthandler.enable()
    templates()
    sanitized = "asan" in os.environ.get("LD_PRELOAD", "")  # its shadow takes terabytes, and it writes to it at length
    if not sanitized:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    outcomes: Counter[str] = Counter()
    with open(progress, "r+b") as file, mmap.mmap(file.fileno(), 8) as shown:
        for number in range(first, first + count):
            shown[:] = struct.pack("<q", number)
            try:
                begin = time.monotonic()
                outcomes[run_case(number, seed)] += 1
                if time.monotonic() - begin > SLOW_S and not sanitized:
                    raise Finding(f"took {time.monotonic() - begin:.1f} s")
            except Finding as finding:
                print(f"FINDING case {number} seed {seed}: {finding}", flush=True)
                outcomes["FINDING"] += 1
        shown[:] = struct.pack("<q", first + count)
    print("peak MB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, dict(outcomes.most_common()), flush=True)


def supervise(cases: int, seed: int = 0, first: int = 0, report: Any = print) -> list[str]:
    """Runs `cases` mutants; returns the findings. A crashed or hung child is replaced behind the case that did it."""
    findings: list[str] = []
    number, end = first, first + cases
    with tempfile.NamedTemporaryFile() as progress:
        while number < end:
            progress.seek(0)
            progress.write(struct.pack("<q", number))
            progress.flush()
            args = [str(number), str(min(end - number, 20_000)), str(seed), progress.name]
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.fuzz.run", *args],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            before, since = -1, time.monotonic()
            while True:
                try:
                    output, _ = process.communicate(timeout=5)
                    break
                except subprocess.TimeoutExpired:
                    now = struct.unpack("<q", Path(progress.name).read_bytes())[0]
                    if now != before:
                        before, since = now, time.monotonic()
                    elif time.monotonic() - since > HANG_S:
                        process.send_signal(6)  # faulthandler prints where
                        output, _ = process.communicate()
                        break
            at = struct.unpack("<q", Path(progress.name).read_bytes())[0]
            findings += [line for line in output.splitlines() if line.startswith("FINDING")]
            if process.returncode != 0:
                text = "\n".join(output.splitlines()[:60])
                findings.append(f"case {at} seed {seed}: the child ended with {process.returncode}\n{text}")
                at += 1
            report(f"case {at}: {output.strip().splitlines()[-1] if output.strip() else ''}")
            number = at
    return findings


if __name__ == "__main__":
    child(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
