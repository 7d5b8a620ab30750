"""python -m tests.sanitizers asan|tsan|checked [pytest arguments]: builds the extensions with checks, runs tests.

asan: AddressSanitizer and UndefinedBehaviorSanitizer over the kernels, the core, the assembler, mutants and threads.
The interpreter uses malloc for everything, so that its small blocks are watched too; CPython is not instrumented.

tsan: ThreadSanitizer over tests/concurrency. Neither CPython nor numpy nor BLAS is instrumented: what is checked are
accesses by vmcore's own code (contexts, caches, allocator, reference counts, thread pool, hooks). Locks inside the
interpreter are seen, because they end in pthread calls that ThreadSanitizer intercepts; races between accesses by the
interpreter itself are not looked for (tsan.supp names its frames).

checked: vmcore's own books (VMCORE_CHECKED=1). Runs the whole test suite, then `tests.soak`, then
`tests.failing_memory`, which lets every request for memory fail. The process ends at once when an object is counted or
freed after its death, or a freed block is written to. When a process ends, each storage, tensor, array, closure, shape
and so on that it made was freed, or is listed here with kind and size: that is a failure.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.sanitizers.build import build, environment

TESTS = {
    "asan": ["tests/vmcore", "tests/pyvm/test_asm.py", "tests/fuzz", "tests/concurrency"],
    "tsan": ["tests/concurrency/test_threads.py", "tests/vmcore/test_threads.py"],
    "checked": ["tests"],
}


def run_with_books(command: list[str], tree: Path) -> int:
    """Runs a command in the checked tree; 1 if it fails, or anything is left in the books of its process at the end.

    Processes that it starts may leave what they like: tests end some in the middle of a call.
    """
    with tempfile.TemporaryDirectory() as folder:
        books = Path(folder) / "books"
        env = {**environment("checked", tree), "VMCORE_BOOKS": str(books)}
        process = subprocess.Popen(command, cwd=tree, env=env)
        code = process.wait()
        found = [line.split() for line in books.read_text().splitlines()] if books.exists() else []
    lines = [line[1:] for line in found if line[0] == str(process.pid)]
    ends = [line for line in lines if line[0] == "end"]
    left = Counter((line[0], int(line[1])) for line in lines if line[0] != "end")
    for (kind, nbytes), n in sorted(left.items()):
        print(f"left at exit: {n} x {kind} of {nbytes} bytes")
    n_blocks = sum(int(line[1]) for line in ends)
    print(f"{' '.join(command[1:])}: exit code {code}; {sum(left.values())} of {n_blocks} blocks left", flush=True)
    return int(code != 0 or bool(left) or not ends)


def main() -> int:
    """Exit code of pytest; findings end the process that has them."""
    if len(sys.argv) < 2 or sys.argv[1] not in TESTS:
        print(__doc__)
        return 2
    kind, arguments = sys.argv[1], sys.argv[2:]
    tree = build(kind)
    selected = arguments if any(not a.startswith("-") for a in arguments) else [*arguments, *TESTS[kind]]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *selected]
    if kind == "checked":
        commands = [command]
        if selected[-1:] == TESTS[kind]:
            commands.append([sys.executable, "-W", "ignore", "-m", "tests.soak", "--calls", "200000"])
            commands.append([sys.executable, "-m", "tests.failing_memory"])
        return sum([run_with_books(one, tree) for one in commands])
    return subprocess.run(command, cwd=tree, env=environment(kind, tree)).returncode


if __name__ == "__main__":
    sys.exit(main())
