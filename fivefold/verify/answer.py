r"""Where in a turn the answer stands, and finding it.

Works on a parsed turn (`fivefold.text.parse`), so that thinking is never mistaken for an answer: a
turn that did not close its thinking has no content at all. Of several boxes, tags or marks the last
counts, for models correct themselves. Surprise: braces inside a box are counted, not matched by a
pattern, as `\boxed{\frac{1}{2}}` has some of its own; an escaped brace is a sign like any other.
"""

import re

from fivefold.text.event import TurnEnd
from fivefold.verify.config import AnswerPlace
from fivefold.verify.number import NUMBER_IN_TEXT

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_HASHES = re.compile(r"####(.*)")


def find_answers(turn: TurnEnd, place: AnswerPlace, tag: str) -> list[str]:
    """Return all that could be the answer, in order, without white space at the ends."""
    content = turn.message.content
    match place:
        case "content":
            found = [content]
        case "last_line":
            found = content.strip().splitlines()[-1:]
        case "boxed":
            found = find_boxes(content)
        case "tag":
            found = _find_tags(content, tag)
        case "hashes":
            found = _HASHES.findall(content)
        case "last_number":
            found = [match.group() for match in NUMBER_IN_TEXT.finditer(content)]
    return [text for answer in found if (text := answer.strip())]


def find_answer(turn: TurnEnd, place: AnswerPlace, tag: str) -> str | None:
    """Return the answer of a turn, or None if it gives none there."""
    return next(reversed(find_answers(turn, place, tag)), None)


def find_boxes(text: str) -> list[str]:
    """Return the content of each closed box; a box within a box is part of the outer one."""
    boxes = []
    place = 0
    while opening := _BOX.search(text, place):
        end = _closing_brace(text, opening.end())
        if end is None:
            break  # neither does any later box within it count
        boxes.append(text[opening.end() : end])
        place = end
    return boxes


def _closing_brace(text: str, begin: int) -> int | None:
    depth = 1
    place = begin
    while place < len(text):
        match text[place]:
            case "\\":
                place += 1  # whatever follows is escaped
            case "{":
                depth += 1
            case "}":
                depth -= 1
                if depth == 0:
                    return place
        place += 1
    return None


def _find_tags(text: str, tag: str) -> list[str]:
    """Return what stands between tags; text is cut at the ends first, which keeps this linear."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    before_ends = text.split(closing)[:-1]
    parts = (part.rpartition(opening) for part in before_ends)
    return [inside for _, found, inside in parts if found]
