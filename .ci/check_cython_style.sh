#!/usr/bin/env bash
# cython-lint over all Cython files. A docstring below a declaration in a .pxd is ours: it documents the C function.
set -euo pipefail
report=$(find vmcore \( -name '*.pyx' -o -name '*.pxd' \) -print0 | sort -z | xargs -0 cython-lint |
    grep -v '\.pxd:[0-9:]* pointless string statement$' || true)
[ -z "$report" ] || { echo "$report"; exit 1; }
