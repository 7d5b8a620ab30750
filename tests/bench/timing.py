"""Timing of calls that alternate, so that both sides of a ratio see the same machine."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

Call = Callable[[], object]


@contextmanager
def pinned(cpus: int = 1) -> Iterator[list[int]]:
    """Keeps this thread, and threads started under it, on the last `cpus` processors that the process may use."""
    before = os.sched_getaffinity(0)
    chosen = sorted(before)[-cpus:]
    os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def no_collection() -> Iterator[None]:
    """Keeps the cyclic garbage collector out of measurements."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def alternate(calls: Mapping[str, Call], rounds: int, number: int = 1, settle_s: float = 0.0) -> dict[str, np.ndarray]:
    """Nanoseconds of every single call, (rounds, number) by name; in each round all sides make `number` calls.

    A block of calls starts with one that is not timed: it brings the caches back that the other side has filled. With
    `settle_s` there is a pause before it, in which the worker threads of the other side go to sleep.
    """
    times = {name: np.empty((rounds, number)) for name in calls}
    clock = time.perf_counter_ns
    with no_collection():
        for row in range(rounds):
            for name, call in calls.items():
                if settle_s:
                    time.sleep(settle_s)
                call()
                for column in range(number):
                    begin = clock()
                    call()
                    times[name][row, column] = clock() - begin
    return times


def repeated(call: Callable[[Any], object], argument: Any, n: int) -> Call:
    """A call that makes `n` calls in a plain Python loop, whose own cost is part of the figure."""
    counter = range(n)

    def loop() -> None:
        for _ in counter:
            call(argument)

    return loop
