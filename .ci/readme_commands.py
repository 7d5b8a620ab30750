"""Prints the N-th command of the README's first shell block: `readme_commands.py README.md N`, N from 1."""

import re
import sys
from pathlib import Path


def commands(text: str) -> list[str]:
    """Lines of the first ```sh block, without comments."""
    block = re.search(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    if block is None:
        sys.exit("the README has no ```sh block")
    lines = (re.sub(r"\s+#.*$", "", line).strip() for line in block[1].splitlines())
    return [line for line in lines if line and not line.startswith("#")]


if __name__ == "__main__":
    print(commands(Path(sys.argv[1]).read_text(encoding="utf-8"))[int(sys.argv[2]) - 1])
