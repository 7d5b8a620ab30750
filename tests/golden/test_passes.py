"""Every pass has a golden file, and does what the file shows."""

from __future__ import annotations

import pytest

from pyvm.ir import parse, structural_equal
from tests.golden import FOLDER, expected, pass_names, read


@pytest.mark.parametrize("name", pass_names())
def test_golden(name: str) -> None:
    path = FOLDER / f"{name}.pyvm"
    assert path.exists(), f"the pass {name} has no golden file {path.name}: see tests/golden/__init__.py"
    sections = read(name)
    assert sections["comment"].startswith("# "), "the first lines say what to look at"
    made = expected(name, sections)
    for section in made:
        assert sections.get(section) == made[section], f"{path.name}: `python -m tests.golden {name}` and read the diff"
    assert made["before"] != made["after"]
    assert structural_equal(parse(made["after"]), parse(parse(made["after"]).script()))


def test_no_file_is_left_over() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.pyvm")) == sorted(pass_names())
