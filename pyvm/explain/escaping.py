"""Text of others on its way into a page."""

from __future__ import annotations

import html


def esc(text: object) -> str:
    """`text` for any place in HTML or SVG; control characters become marks, halves of surrogates question marks."""
    shown = "".join(c if c >= " " and c != "\x7f" or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    return html.escape(shown.encode("utf-8", "replace").decode("utf-8"), quote=True)
