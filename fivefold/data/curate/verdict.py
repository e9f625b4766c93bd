"""What a rule answers: the text that stays, or the reason why none does, and the spans taken out.

Spans count characters of the text that the rule was given, so that a sample can show them in place.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Edit:
    """A span that was taken out of a text that stays."""

    reason: str
    begin: int
    end: int
    removed: str
    """What stood there."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer of a rule, or of a chain of them."""

    text: str
    """The text that stays; of a dropped one, the text as it was."""
    reason: str = ""
    """Why the document goes, `room.rule`; empty if it stays."""
    span: tuple[int, int] | None = None
    """Where in `text` the reason shows, if it stands in one place."""
    edits: tuple[Edit, ...] = ()
    """What was taken out, each in the text before that step of the chain."""

    @property
    def is_kept(self) -> bool:
        """Whether the document stays."""
        return not self.reason
