#!/usr/bin/env bash
# Builds the wheel into the folder $1 and checks what is in it: small enough, no sources of extensions, data complete.
set -euo pipefail
limit=$((3 * 1024 * 1024))

pip wheel --quiet --no-deps --wheel-dir "$1" .
wheel=$(echo "$1"/*.whl)
size=$(stat -c %s "$wheel")
echo "$(basename "$wheel"): $size bytes"
[ "$size" -le "$limit" ] || { echo "the wheel is larger than $limit bytes"; exit 1; }

python - "$wheel" << 'PYTHON'
import sys
import zipfile

names = zipfile.ZipFile(sys.argv[1]).namelist()
wrong = [name for name in names if name.endswith((".c", ".h", ".pyx", ".html")) or name.startswith(("tests", "build"))]
needed = {"vmcore/py.typed", "pyvm/py.typed", "pyvm/demo/digits.npz", "pyvm/demo/weights.npz", "pyvm/demo/ATTRIBUTION.md"}
missing = sorted(needed - set(names))
if wrong or missing:
    sys.exit(f"in the wheel but should not be: {wrong}; missing: {missing}")
PYTHON
