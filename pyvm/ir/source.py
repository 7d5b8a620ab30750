"""Where a node comes from, and what passes have made of it."""

from __future__ import annotations


class Source(str):
    """The name of a source operator with notes: what passes did to it, for people who ask why.

    Equal to the plain string. Wherever a source goes, its notes go too; text forms show the name alone.

    Attributes
    ----------
    notes : tuple of str
    """

    __slots__ = ("notes",)
    notes: tuple[str, ...]

    def __new__(cls, name: str, notes: tuple[str, ...] = ()) -> Source:
        self = super().__new__(cls, name)
        self.notes = notes
        return self

    def __reduce__(self) -> tuple[type[Source], tuple[str, tuple[str, ...]]]:
        return Source, (str(self), self.notes)


def notes_of(source: str | None) -> tuple[str, ...]:
    """The notes of a source; none for a plain string."""
    return source.notes if isinstance(source, Source) else ()


def noted(source: str | None, note: str) -> str | None:
    """The same source with one more note, once; what comes from nowhere has nobody to ask about it."""
    if source is None or note in notes_of(source):
        return source
    return Source(source, (*notes_of(source), note))
