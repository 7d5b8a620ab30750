"""Translates the kernels and all files marked `# HOT:` in their first line; rejects what costs the GIL in a hot loop.

Rejected are Cython's performance hints (it prints them and succeeds) and calls of `__Pyx_ErrOccurredWithGIL`, which a
`nogil` function that may raise leaves behind at each call.
"""

import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def problems(source: Path, directives: dict[str, object], folder: Path) -> list[str]:
    """What is wrong in the translation of one file."""
    output = folder / "out.c"
    options = [f"-X{name}={value}" for name, value in directives.items() if name != "language_level"]
    command = [sys.executable, "-m", "cython", "-3", *options, str(source.relative_to(ROOT)), "-o", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    report = (done.stdout + done.stderr).splitlines()
    if done.returncode:
        return report
    found = [line for line in report if "performance hint" in line.lower()]
    calls = output.read_text(encoding="utf-8").count("__Pyx_ErrOccurredWithGIL(") - 2  # declaration and definition
    if calls > 0:
        found.append(f"{source.relative_to(ROOT)}: {calls} call(s) of __Pyx_ErrOccurredWithGIL")
    return found


def is_hot(source: Path) -> bool:
    """Whether the file is marked, or is a kernel."""
    with source.open(encoding="utf-8") as file:
        return file.readline().startswith("# HOT:") or source.parent.name == "kernels"


def main() -> int:
    """Check all hot files; 1 if one has a problem."""
    directives = runpy.run_path(str(ROOT / "setup.py"), run_name="setup_of_pyvm")["DIRECTIVES"]
    hot = [path for path in sorted(ROOT.glob("vmcore/**/*.pyx")) if is_hot(path)]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for path in hot:
            here = problems(path, directives, Path(folder))
            print(f"{path.relative_to(ROOT)}: {'ok' if not here else f'{len(here)} problem(s)'}")
            found += here
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
