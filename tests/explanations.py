"""What must hold for every explanation: its forms are whole, its buffers do not overlap."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser

from pyvm.explain import CATEGORIES, Explanation, sizes


def check_forms(explanation: Explanation) -> str:
    """All forms of an explanation; returns the page."""
    assert str(explanation)
    explanation.to_text(all_instructions=True)
    data = json.loads(explanation.to_json())
    assert len(data["functions"]) == len(explanation.functions)
    for function in explanation.functions:
        assert [i.pc for i in function.instructions] == list(range(function.begin, function.end))
        assert all(i.category in CATEGORIES for i in function.instructions)
        for buffer in function.buffers.values():
            assert buffer.begin <= buffer.end
    page = explanation.to_html()
    Checked().check(page)
    for function in explanation.functions:
        for i in function.instructions[:5000]:
            assert '<tr class="i' in page and f'data-pc="{i.pc}"' in page
    return page


class Checked(HTMLParser):
    """Checks that elements close in order, and notes scripts and everything that would be fetched."""

    VOID = frozenset({"meta", "br", "input", "link", "img"})
    NEVER = frozenset("iframe object embed link base form img image foreignobject use animate".split())

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: dict[str, int] = {}
        self.problems: list[str] = []

    def check(self, page: str) -> None:
        self.feed(page)
        self.close()
        assert not self.open and not self.problems, (self.open, self.problems[:5])
        assert self.seen["script"] >= 2 and self.seen.get("html") == 1

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name.startswith("on") or name in ("src", "action", "formaction", "data", "srcset", "srcdoc"):
                self.problems.append(f"{tag} {name}={value}")
            if name in ("href", "xlink:href") and not (value or "").startswith("#"):
                self.problems.append(f"{tag} {name}={value}")
        if tag in self.NEVER:
            self.problems.append(f"<{tag}>")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> closes {self.open[-1:]}")
        else:
            self.open.pop()


def assert_no_overlap(explanation: Explanation, n: int = 16) -> int:
    """Buffers that are alive at the same time share no byte of an arena; returns how many pairs were looked at."""
    pairs = 0
    for function in explanation.functions:
        dims = function.resolved({name: n for name in function.symbols})
        placed = []
        for buffer in function.buffers.values():
            offset, nbytes = sizes.number(buffer.offset, dims), sizes.number(buffer.nbytes, dims)
            if offset is not None and nbytes is not None:
                placed.append(replace(buffer, offset=offset, nbytes=nbytes))
        for i, a in enumerate(placed):
            for b in placed[:i]:
                if a.storages != b.storages or len(a.storages) != 1:
                    continue
                together = any(p <= s and r <= q for p, q in a.spans for r, s in b.spans)
                if together:
                    pairs += 1
                    apart = a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset  # type: ignore[operator]
                    same = (a.offset, a.nbytes) == (b.offset, b.nbytes)  # handed over in place
                    assert apart or same or a.nbytes == 0 or b.nbytes == 0, (function.name, a, b)
    return pairs
