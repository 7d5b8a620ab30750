"""python -m tests.sanitizers asan|tsan|checked [pytest arguments | -m module arguments]

Builds the extensions with checks, and runs tests or a module (`-m tests.fuzz --cases 100000`) in that tree.

asan: AddressSanitizer and UndefinedBehaviorSanitizer over the kernels, the core, the assembler, mutants and threads.
The interpreter uses malloc for everything, so that its small blocks are watched too; CPython is not instrumented.

tsan: ThreadSanitizer over tests/concurrency. Neither CPython nor numpy nor BLAS is instrumented: what is checked are
accesses by vmcore's own code (contexts, caches, allocator, reference counts, thread pool, hooks), wherever they are
called from. Locks inside the interpreter are seen, because they end in pthread calls that ThreadSanitizer intercepts.

Before either runs, a deliberate error of each kind (canary.c) must be reported in the same environment.

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

from tests.sanitizers.build import build, build_canary, environment

TESTS = {
    "asan": ["tests/vmcore", "tests/pyvm/test_asm.py", "tests/fuzz", "tests/concurrency"],
    "tsan": [
        "tests/concurrency/test_threads.py", "tests/concurrency/test_stress.py", "tests/concurrency/test_same_bits.py",
        "tests/vmcore/test_threads.py",
    ],
    "checked": ["tests"],
}  # fmt: skip
CANARIES = {
    "asan": {"overflow": "heap-buffer-overflow", "undefined": "signed integer overflow"},
    "tsan": {"race": "data race"},
    "checked": {},
}
_CALL = """
import ctypes, sys, threading
function = getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])
threads = [threading.Thread(target=function, args=(30_000_000 if sys.argv[2] == "race" else 1,)) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def missed(kind: str, tree: Path) -> list[str]:
    """Deliberate errors that this build's sanitizers do not report."""
    library, found = build_canary(kind, tree), []
    for name, report in CANARIES[kind].items():
        command = [sys.executable, "-c", _CALL, str(library), name]
        done = subprocess.run(command, cwd=tree, env=environment(kind, tree), capture_output=True, text=True)
        if done.returncode == 0 or report not in done.stderr:
            found.append(f"{kind}: {name} in canary.c was not reported: exit code {done.returncode}\n{done.stderr}")
    return found


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
    """Exit code of pytest or the module; findings end the process that has them."""
    if len(sys.argv) < 2 or sys.argv[1] not in TESTS:
        print(__doc__)
        return 2
    kind, arguments = sys.argv[1], sys.argv[2:]
    tree = build(kind)
    blind = missed(kind, tree) if CANARIES[kind] else []
    if blind:
        print("\n".join(blind), file=sys.stderr)
        return 1
    if arguments[:1] == ["-m"]:
        commands = [[sys.executable, "-W", "ignore", *arguments]]
    else:
        selected = arguments if any(not a.startswith("-") for a in arguments) else [*arguments, *TESTS[kind]]
        commands = [[sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *selected]]
        if kind == "checked" and selected[-1:] == TESTS[kind]:
            commands.append([sys.executable, "-W", "ignore", "-m", "tests.soak", "--calls", "200000"])
            commands.append([sys.executable, "-m", "tests.failing_memory"])
    if kind == "checked":
        return sum([run_with_books(one, tree) for one in commands])
    return subprocess.run(commands[0], cwd=tree, env=environment(kind, tree)).returncode


if __name__ == "__main__":
    sys.exit(main())
