"""Threads that work at once, beside others that disturb them until they are done."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable


def in_threads(
    work: Callable[[int], None], *others: Callable[[], None], n: int = 8, pause_s: float = 0.0
) -> Counter[str]:
    """Runs work(0) ... work(n - 1) at once, and `others` again and again beside them, with a pause in between.

    Returns how often each of the others ran, by name. The first error of any thread is raised, and the others end.
    """
    failures: list[BaseException] = []
    counts: Counter[str] = Counter()
    done = threading.Event()
    start = threading.Barrier(n + len(others))

    def run(index: int) -> None:
        start.wait()
        try:
            work(index)
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            failures.append(error)

    def disturb(other: Callable[[], None]) -> None:
        start.wait()
        try:
            while True:  # once at least, however soon the workers are done
                other()
                counts[other.__name__] += 1
                if done.is_set() or failures:
                    return
                time.sleep(pause_s)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    workers = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    disturbers = [threading.Thread(target=disturb, args=(other,)) for other in others]
    for thread in workers + disturbers:
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    for thread in disturbers:
        thread.join()
    if failures:
        raise failures[0]
    return counts
