"""python -m tests.sanitizers asan|tsan [pytest arguments]: builds the extensions with a sanitizer, runs tests.

asan: AddressSanitizer and UndefinedBehaviorSanitizer over the kernels, the core, the assembler, mutants and threads.
The interpreter uses malloc for everything, so that its small blocks are watched too; CPython is not instrumented.

tsan: ThreadSanitizer over tests/concurrency. Neither CPython nor numpy nor BLAS is instrumented: what is checked are
accesses by vmcore's own code (contexts, caches, allocator, reference counts, thread pool, hooks). Locks inside the
interpreter are seen, because they end in pthread calls that ThreadSanitizer intercepts; races between accesses by the
interpreter itself are not looked for (tsan.supp names its frames).
"""

from __future__ import annotations

import subprocess
import sys

from tests.sanitizers.build import build, environment

TESTS = {
    "asan": ["tests/vmcore", "tests/pyvm/test_asm.py", "tests/fuzz", "tests/concurrency"],
    "tsan": ["tests/concurrency/test_threads.py", "tests/vmcore/test_threads.py"],
}


def main() -> int:
    """Exit code of pytest; findings end the process that has them."""
    if len(sys.argv) < 2 or sys.argv[1] not in TESTS:
        print(__doc__)
        return 2
    kind, arguments = sys.argv[1], sys.argv[2:]
    tree = build(kind)
    selected = arguments if any(not a.startswith("-") for a in arguments) else [*arguments, *TESTS[kind]]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *selected]
    return subprocess.run(command, cwd=tree, env=environment(kind, tree)).returncode


if __name__ == "__main__":
    sys.exit(main())
