"""Checks what a wheel of the installed pyvm holds: small enough, no sources of extensions, data and stubs complete.

The wheel is packed again from the installed files, which saves building everything a second time.
"""

import sys
import tempfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

LIMIT = 3 * 1024 * 1024
NEEDED = {
    "vmcore/py.typed",
    "pyvm/py.typed",
    "pyvm/demo/digits.npz",
    "pyvm/demo/weights.npz",
    "pyvm/demo/ATTRIBUTION.md",
}
ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Pack, compare, report; 1 if something is wrong."""
    files = {
        str(file): Path(str(file.locate()))
        for file in distribution("pyvm").files or ()
        if "__pycache__" not in str(file) and not str(file).startswith("..")
    }
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(folder) / "pyvm.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, path in files.items():
                archive.write(path, name)
        size = wheel.stat().st_size
    problems = []
    if size > LIMIT:
        problems.append(f"the wheel is larger than {LIMIT} bytes")
    sources = [name for name in files if name.endswith((".c", ".h", ".pyx", ".html"))]
    if sources:
        problems.append(f"should not be in the wheel: {sources}")
    stubs = {str(path.relative_to(ROOT)) for path in ROOT.glob("vmcore/**/*.pyi")}
    missing = sorted((NEEDED | stubs) - set(files))
    if missing:
        problems.append(f"missing in the wheel: {missing}")
    print(f"wheel: {len(files)} files, {size} bytes", *problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
