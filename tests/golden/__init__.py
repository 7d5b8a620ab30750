"""Golden files: `passes/<pass>.pyvm` shows what a pass does, on the smallest program that shows it.

A file has the sections `# before` and `# after`; what a pass of the lowering works on is made of a third, `# source`,
by the passes that come before it. To add one, write `# before` (or `# source`) and a program under it, then let

    python -m tests.golden

write the rest. It rewrites all files; read the difference before you commit it.
"""

from __future__ import annotations

from pathlib import Path

from pyvm import transform
from pyvm.ir import check_well_formed, parse
from pyvm.transform import DEFAULT_PIPELINE, Pass

FOLDER = Path(__file__).parent / "passes"
SECTIONS = ("source", "before", "after")


def pass_names() -> list[str]:
    """Names of the passes of the pipeline and of those that `pyvm.transform` exports, in order."""
    names = [transform_.__name__ for transform_ in DEFAULT_PIPELINE]  # type: ignore[attr-defined]
    exported = [name for name in transform.__all__ if name not in ("run_passes",) and name.islower()]
    return list(dict.fromkeys([*names, *exported]))


def read(name: str) -> dict[str, str]:
    """Sections of a golden file."""
    sections: dict[str, str] = {"comment": ""}
    current = "comment"
    for line in (FOLDER / f"{name}.pyvm").read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and line[2:] in SECTIONS:
            current = line[2:]
            sections[current] = ""
        else:
            sections[current] += line + "\n"
    return {key: text.strip("\n") + "\n" for key, text in sections.items()}


def expected(name: str, sections: dict[str, str]) -> dict[str, str]:
    """The sections as the passes make them."""
    made = {"comment": sections["comment"]}
    work = getattr(transform, name)
    if "source" in sections:
        module = parse(sections["source"])
        made["source"] = module.script()
        for before in _before(work):
            module = before(module)
    else:
        module = parse(sections["before"])
    check_well_formed(module)
    made["before"] = module.script()
    made["after"] = check_well_formed(work(parse(made["before"])), after=name).script()
    return {key: text.strip("\n") + "\n" for key, text in made.items()}


def _before(work: Pass) -> tuple[Pass, ...]:
    return DEFAULT_PIPELINE[: DEFAULT_PIPELINE.index(work)]


def write(name: str) -> None:
    """Writes a golden file anew."""
    sections = expected(name, read(name))
    parts = [sections["comment"], *(f"# {key}\n\n{sections[key]}" for key in SECTIONS if key in sections)]
    (FOLDER / f"{name}.pyvm").write_text("\n".join(parts), encoding="utf-8")
