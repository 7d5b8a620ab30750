"""Compile and run the digit classifier that ships with pyvm, and show what happens on the way.

Nothing is downloaded or trained: network, weights and images are part of the package (pyvm/demo).
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyvm.cli.common import Progress, bytes_text, positive_int, seconds_text

if TYPE_CHECKING:
    from pyvm.vm import VirtualMachine

HELP = "run a digit classifier that ships with pyvm"

EXPECTED_ACCURACY = 0.97  # what the shipped weights are known to reach on the held-out images


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("--save", type=Path, metavar="FILE.vmx", help="also write the executable here")
    parser.add_argument("--threads", type=positive_int, default=None, metavar="N", help="threads that kernels may use")


def run(args: argparse.Namespace) -> int:
    """Run the demo; 1 if the accuracy is not what it should be."""
    import pyvm
    from pyvm import demo
    from pyvm.demo.model import build_module

    if args.threads is not None:
        pyvm.set_num_threads(args.threads)
    begin = time.perf_counter()
    with Progress("compiling the digit classifier"):
        executable = pyvm.compile(build_module())
    elapsed = time.perf_counter() - begin
    weights = sum(constant.nbytes for constant in executable.constants if isinstance(constant, np.ndarray))
    print(
        f"digit classifier: {len(executable.instr_offset)} instructions, {bytes_text(weights)} of weights, "
        f"compiled in {seconds_text(elapsed)}"
    )
    if args.save is not None:
        executable.save(args.save)
        print(f"saved {args.save}")

    print("\n== bytecode ==\n")
    print(_bytecode(executable.as_text()))

    vm = pyvm.VirtualMachine(executable)
    _, held_out = demo.load_digits()
    probabilities = np.asarray(vm["main"](held_out.images))
    guesses = probabilities.argmax(axis=1)
    right = guesses == held_out.labels

    print("\n== two of the images ==\n")
    shown = [int(np.flatnonzero(right)[0]), int(np.flatnonzero(~right)[0])] if not right.all() else [0, 1]
    print(_pictures([held_out.images[index, 0] for index in shown]))
    captions = [
        f"a {held_out.labels[index]}, taken for a {guesses[index]} ({probabilities[index, guesses[index]]:.1%})"
        for index in shown
    ]
    print("   ".join(caption.ljust(_WIDTH) for caption in captions).rstrip())

    print("\n== time per operator, all held-out images in one call ==\n")
    print(_operator_times(vm, held_out.images))

    accuracy = float(right.mean())
    print(f"\naccuracy on {len(right)} held-out images: {accuracy:.1%}")
    if accuracy < EXPECTED_ACCURACY:
        print(f"FAILED: it should be at least {EXPECTED_ACCURACY:.0%}")
        return 1
    return 0


_WIDTH = 30  # columns of one picture with its caption


def _pictures(images: list[np.ndarray]) -> str:
    """Pictures side by side."""
    from pyvm.demo import ascii_picture

    columns = [[f"|{line:16}|" for line in ascii_picture(image).split("\n")] for image in images]
    return "\n".join("   ".join(line.ljust(_WIDTH) for line in row).rstrip() for row in zip(*columns, strict=True))


def _operator_times(vm: VirtualMachine, images: np.ndarray, repeat: int = 10) -> str:
    """A table with the median time of each kernel call, in the order of the program."""
    vm["main"](images)
    profiles = [vm.profile("main", images) for _ in range(repeat)]
    begin = time.perf_counter()
    for _ in range(repeat):
        vm["main"](images)
    total = (time.perf_counter() - begin) / repeat

    # A program without branches: every run executes the same calls in the same order.
    runs = np.array([[record.end_ns - record.start_ns for record in profile.records] for profile in profiles])
    medians = np.median(runs, axis=0) / 1e9
    rows = [
        (record.source or "", record.name, seconds)
        for record, seconds in zip(profiles[0].records, medians, strict=True)
        if record.name.startswith("kernel.")
    ]
    others = len(medians) - len(rows)
    rows.append(("", f"{others} calls for shapes and memory", float(medians.sum()) - sum(row[2] for row in rows)))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [
        f"{source:{widths[0]}}  {name:{widths[1]}}  {seconds_text(seconds):>8}  {seconds / medians.sum():6.1%}"
        for source, name, seconds in rows
    ]
    lines.append(f"whole call: {seconds_text(total)}, {seconds_text(total / len(images))} per image")
    return "\n".join(lines)


def _bytecode(text: str) -> str:
    """The text of an executable without the declarations of its external functions."""
    return re.sub(r"^@\S+ packed_func;\n*", "", text, flags=re.MULTILINE).strip("\n")
