"""Prints the requirements of one extra of the installed pyvm, one a line: `requirements.py lint`."""

import sys
from importlib.metadata import requires

marker = f"extra == '{sys.argv[1]}'"
for requirement in requires("pyvm") or ():
    name, _, condition = requirement.partition(";")
    if condition.strip().replace('"', "'") == marker:
        print(name.strip())
