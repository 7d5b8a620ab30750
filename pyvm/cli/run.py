"""Run a function of a model and print (or save) its results.

Inputs come from .npy and .npz files; those that are not given are random, made from the signature and --seed. With
--check the same inputs go through ONNX Runtime, and the results must agree within --rtol and --atol.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from pyvm.cli.common import (
    Progress,
    UsageError,
    add_input_arguments,
    add_model_argument,
    describe,
    flatten,
    is_onnx,
    load_model,
    make_inputs,
    positive_int,
    result_names,
    seconds_text,
)

HELP = "run a model on inputs from files or random ones"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_model_argument(parser)
    add_input_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="FILE.npz", help="save the results here")
    parser.add_argument("--repeat", type=positive_int, default=1, metavar="N", help="call N times and print the times")
    parser.add_argument(
        "--check",
        nargs="?",
        const="",
        default=None,
        metavar="MODEL.onnx",
        help="compare with ONNX Runtime on this model (default: MODEL, if it is an .onnx file)",
    )
    parser.add_argument("--rtol", type=float, default=1e-3, help="relative tolerance of --check (default: 1e-3)")
    parser.add_argument("--atol", type=float, default=1e-5, help="absolute tolerance of --check (default: 1e-5)")


def run(args: argparse.Namespace) -> int:
    """Call the function, show the results, compare them where asked."""
    import pyvm
    from pyvm.cli.ort import OrtModel

    reference = _reference_path(args)
    if args.output is not None and args.output.suffix.lower() != ".npz":
        raise UsageError(f"--output {args.output}: the results are saved as .npz")
    peer = OrtModel(reference, args.threads) if reference is not None else None
    if args.threads is not None:
        pyvm.set_num_threads(args.threads)
    executable = load_model(args.model)
    names, inputs = make_inputs(executable, args)
    for name, value in zip(names, inputs, strict=True):
        print(f"in   {name}: {describe(np.asarray(value))}")

    function = pyvm.VirtualMachine(executable)[args.function]
    times = []
    result: Any = None
    with Progress(f"running {args.function}") as progress:
        for index in range(args.repeat):
            begin = time.perf_counter()
            result = function(*inputs)
            times.append(time.perf_counter() - begin)
            if index % 16 == 0:
                progress.update(f"{index + 1}/{args.repeat}")
    outputs = flatten(result)
    labels = result_names(executable, args.function, len(outputs))
    for label, output in zip(labels, outputs, strict=True):
        print(f"out  {label}: {describe(output)}")
    threads = f"{pyvm.get_num_threads()} thread(s)"
    if args.repeat == 1:
        print(f"time {seconds_text(times[0])} (first call, {threads})")
    else:
        print(
            f"time min {seconds_text(min(times))}, median {seconds_text(float(np.median(times)))} "
            f"of {args.repeat} calls, first {seconds_text(times[0])} ({threads})"
        )
    if args.output is not None:
        np.savez(args.output, allow_pickle=False, **dict(zip(labels, outputs, strict=True)))
        print(f"saved {args.output}")
    if peer is None:
        return 0
    return _compare(peer, dict(zip(names, inputs, strict=True)), labels, outputs, args.rtol, args.atol)


def _reference_path(args: argparse.Namespace) -> Path | None:
    """The ONNX model that --check compares with."""
    if args.check is None:
        return None
    if args.check:
        return Path(args.check)
    if not is_onnx(args.model):
        raise UsageError(f"--check: {args.model} is not an .onnx model; name the one to compare with")
    return Path(args.model)


def _compare(
    peer: Any, inputs: dict[str, np.ndarray], labels: list[str], outputs: list[np.ndarray], rtol: float, atol: float
) -> int:
    """Print how far each output is from ONNX Runtime's; 1 if one is too far."""
    expected = peer.run(inputs)
    if len(expected) != len(outputs):
        print(f"check FAILED: {len(outputs)} outputs, ONNX Runtime has {len(expected)}")
        return 1
    failures = 0
    for label, output, reference in zip(labels, outputs, expected, strict=True):
        if output.shape != reference.shape or output.dtype != reference.dtype:
            print(
                f"check {label}: FAILED, {output.dtype}{list(output.shape)}, "
                f"ONNX Runtime has {reference.dtype}{list(reference.shape)}"
            )
            failures += 1
            continue
        close = np.isclose(
            output.astype(np.float64), reference.astype(np.float64), rtol=rtol, atol=atol, equal_nan=True
        )
        worst = np.abs(output.astype(np.float64) - reference.astype(np.float64))
        worst = np.nan_to_num(worst[np.isfinite(worst)]).max(initial=0.0)
        if close.all():
            print(f"check {label}: ok, largest difference {worst:.3g}")
        else:
            print(f"check {label}: FAILED, {np.count_nonzero(~close)} of {close.size} differ, by up to {worst:.3g}")
            failures += 1
    print(f"check {'ok' if not failures else 'FAILED'} against ONNX Runtime (rtol {rtol:g}, atol {atol:g})")
    return 1 if failures else 0
