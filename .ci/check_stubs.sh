#!/usr/bin/env bash
# Compares each stub of an extension module with the installed module.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
modules=$(cd "$here/.." && find vmcore -name '*.pyi' | sort | sed 's/\.pyi$//; s#/#.#g')
cd "$(mktemp -d)" # away from the sources: the installed package is what counts
# shellcheck disable=SC2086
python -m mypy.stubtest --concise --mypy-config-file "$here/../pyproject.toml" --allowlist "$here/stubtest_allowlist.txt" \
    --ignore-unused-allowlist $modules
