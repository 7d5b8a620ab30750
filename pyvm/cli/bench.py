"""Time a function of a model: numpy arrays in, results out.

Rounds of calls follow each other until each is long enough for the clock; the figures are seconds for one call, by
round. With --compare, rounds of ONNX Runtime alternate with pyvm's, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pyvm.cli.common import (
    Progress,
    UsageError,
    add_input_arguments,
    add_model_argument,
    is_onnx,
    load_model,
    make_inputs,
    positive_int,
    seconds_text,
)

HELP = "time a model, side by side with ONNX Runtime if asked"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_model_argument(parser)
    add_input_arguments(parser)
    parser.add_argument("--repeat", type=positive_int, default=20, metavar="N", help="rounds (default: 20)")
    parser.add_argument(
        "--min-ms", type=float, default=20.0, metavar="MS", help="least length of a round in milliseconds (default: 20)"
    )
    parser.add_argument(
        "--compare",
        nargs="?",
        const="",
        default=None,
        metavar="MODEL.onnx",
        help="time ONNX Runtime on this model too (default: MODEL, if it is an .onnx file)",
    )


def measure(calls: list[Callable[[], object]], repeat: int, min_seconds: float, progress: Progress) -> np.ndarray:
    """Seconds per call, (repeat, number of calls); the rounds of different calls alternate."""
    numbers = []
    for call in calls:
        call()  # warm up: first-call allocations, thread start
        number = 1
        while True:
            begin = time.perf_counter()
            for _ in range(number):
                call()
            elapsed = time.perf_counter() - begin
            if elapsed >= min_seconds:
                break
            number = max(number + 1, int(number * min(10.0, 1.2 * min_seconds / max(elapsed, 1e-9))))
        numbers.append(number)
    times = np.empty((repeat, len(calls)))
    for row in range(repeat):
        progress.update(f"round {row + 1}/{repeat}")
        for column, (call, number) in enumerate(zip(calls, numbers, strict=True)):
            begin = time.perf_counter()
            for _ in range(number):
                call()
            times[row, column] = (time.perf_counter() - begin) / number
    return times


def run(args: argparse.Namespace) -> int:
    """Measure and print one line for each runtime."""
    import pyvm
    from pyvm.cli.ort import OrtModel

    if args.threads is not None:
        pyvm.set_num_threads(args.threads)
    executable = load_model(args.model)
    names, inputs = make_inputs(executable, args)
    function = pyvm.VirtualMachine(executable)[args.function]
    runtimes: dict[str, Callable[[], object]] = {"pyvm": lambda: function(*inputs)}
    if args.compare is not None:
        if not args.compare and not is_onnx(args.model):
            raise UsageError(f"--compare: {args.model} is not an .onnx model; name the one to compare with")
        peer = OrtModel(Path(args.compare or args.model), pyvm.get_num_threads())
        feeds = peer.feeds(dict(zip(names, inputs, strict=True)))
        runtimes["onnxruntime"] = lambda: peer.call(feeds)

    with Progress(f"timing {args.model.name}") as progress:
        times = measure(list(runtimes.values()), args.repeat, args.min_ms / 1e3, progress)
    shapes = ", ".join(f"{name}{list(np.shape(value))}" for name, value in zip(names, inputs, strict=True))
    print(f"{args.model.name} @{args.function}({shapes}), {pyvm.get_num_threads()} thread(s), {args.repeat} rounds")
    print(f"{'':12}  {'min':>10}  {'median':>10}  {'max':>10}")
    for name, column in zip(runtimes, times.T, strict=True):
        figures = "  ".join(f"{seconds_text(value):>10}" for value in (column.min(), np.median(column), column.max()))
        print(f"{name:12}  {figures}")
    if len(runtimes) == 2:
        ratio = times[:, 0] / times[:, 1]
        print(f"pyvm / onnxruntime: {np.median(ratio):.3f} (median of rounds)")
    return 0
