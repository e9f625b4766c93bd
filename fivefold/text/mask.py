"""Loss masks inside a turn: from excluded characters to the tokens that they touch.

Text is encoded whole, so that ids do not depend on what is excluded, and a token is left out of the
loss when it holds a byte of an excluded character. Offsets are counted in bytes, for a token may
end inside a character.
"""

from collections.abc import Sequence

from fivefold.text.conversation import Message
from fivefold.text.tokenizer import Tokenizer

Span = tuple[int, int]
"""First character (or call), and the first after it."""


def excluded_spans(message: Message, part: str) -> list[Span]:
    """Return the spans of one part of an assistant's turn that are not learned."""
    length = len(getattr(message, part) or ())
    return [
        (exclusion.begin, length if exclusion.end is None else exclusion.end)
        for exclusion in message.exclusions
        if exclusion.part == part
    ]


def mark_learned(
    ids: Sequence[int], excluded: Sequence[Span], text: str, tokenizer: Tokenizer
) -> list[bool]:
    """Return for each id of the encoded text whether it lies outside of all excluded spans."""
    spans = [
        (len(text[: max(begin, 0)].encode()), len(text[: max(end, 0)].encode()))
        for begin, end in excluded
    ]
    learned = []
    begin = 0
    for token in ids:
        end = begin + len(tokenizer.decode_bytes([token]))
        learned.append(not any(begin < last and first < end for first, last in spans))
        begin = end
    return learned
