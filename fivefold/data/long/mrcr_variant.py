"""How the variants of an MRCR-like conversation ask, and what they ask for at the end.

`ordinal` is MRCR's own: "the 2nd paragraph about rivers". The ten others: `from_end` counts from
the last; `attribute` names a word that one needle alone has; `version` asks for a state in a chain
of revisions; `pair` wants two needles; `structured` has needles with a syntax; `absent` asks for
one that does not exist; `language` asks in another language; `tool` has its needles in results of
tool calls; `paraphrase` words each request differently; `user_turn` has them in what the user said.

Every last request says what to answer where there is no such text, so that `absent` does not show
by its wording.
"""

# Full-width marks are those of Chinese.
# ruff: noqa: RUF001

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fivefold.data.long.config import Variant
from fivefold.data.long.mrcr_text import STRUCTURED, only_here, ordinal
from fivefold.data.long.vectors import content_words
from fivefold.text.conversation import Message
from fivefold.text.tool import ToolCall

NONE = "none"
"""The answer where there is no such text."""
TOOL = "find_text"
"""Name of the tool that `tool` calls."""
DECLARATION = {
    "type": "function",
    "function": {
        "name": TOOL,
        "description": "Find a text of a form about a topic.",
        "parameters": {
            "type": "object",
            "properties": {"form": {"type": "string"}, "topic": {"type": "string"}},
            "required": ["form", "topic"],
        },
    },
}
"""What `tool` declares."""
_ORDER = "Do not write anything else. If there is no such text, the text is: " + NONE
_PARAPHRASES = (
    "Write a {form} about {topic}.",
    "Please give me a {form} about {topic}.",
    "I need a {form} about {topic}.",
    "Can you produce a {form} about {topic}?",
    "Next: a {form} about {topic}.",
    "Show me a {form} about {topic}, please.",
    "How about a {form} about {topic}?",
    "Another task: compose a {form} about {topic}.",
)
_GERMAN = (
    "Schreibe {prefix} und direkt danach, unverändert, Text Nummer {number} der Form „{form}“ zum "
    "Thema „{topic}“, den du oben geschrieben hast. Schreibe nichts anderes. Gibt es ihn nicht, "
    "lautet der Text: none"
)
_FRENCH = (
    "Écris {prefix} suivi immédiatement, sans changement, du texte numéro {number} de forme "
    "« {form} » sur le sujet « {topic} » que tu as écrit plus haut. N'écris rien d'autre. S'il "
    "n'existe pas, le texte est : none"
)
_SPANISH = (
    "Escribe {prefix} y a continuación, sin cambios, el texto número {number} de forma «{form}» "
    "sobre el tema «{topic}» que escribiste arriba. No escribas nada más. Si no existe, el texto "
    "es: none"
)
_CHINESE = (
    "请写出 {prefix} ，紧接着原样写出你在上文所写的第 {number} 个形式为“{form}”、"
    "主题为“{topic}”的文本。不要写别的。如果没有，文本就是： none"
)
_LANGUAGES = (_GERMAN, _FRENCH, _SPANISH, _CHINESE)


@dataclass(frozen=True)
class Exchange:
    """A request and the text that answers it."""

    form: str
    topic: str
    text: str
    version: int = 1
    """In a chain of revisions; elsewhere 1."""


def forms_for(variant: Variant, form: str, random: np.random.Generator) -> str:
    """Return the needles' form."""
    return STRUCTURED[int(random.integers(len(STRUCTURED)))] if variant == "structured" else form


def exchange_messages(
    exchange: Exchange, variant: Variant, number: int, random: np.random.Generator
) -> list[Message]:
    """Return the messages of one exchange; `number` makes names of calls unique."""
    form, topic = exchange.form, exchange.topic
    if variant == "user_turn":
        said = f"Here is a {form} about {topic}. Keep it for later.\n\n{exchange.text}"
        return [Message(role="user", content=said), Message(role="assistant", content="Kept.")]
    ask = f"Write a {form} about {topic}."
    if variant == "paraphrase":
        ask = _PARAPHRASES[int(random.integers(len(_PARAPHRASES)))].format(form=form, topic=topic)
    if exchange.version > 1:
        ask = f"Revise your {form} about {topic}."
    if variant == "tool":
        name = f"call_{number}"
        call = ToolCall(name=TOOL, arguments={"form": form, "topic": topic}, id=name)
        return [
            Message(role="user", content=f"Find a {form} about {topic}."),
            Message(role="assistant", tool_calls=(call,)),
            Message(role="observation", content=exchange.text, tool_call_id=name),
            Message(role="assistant", content="Found."),
        ]
    return [Message(role="user", content=ask), Message(role="assistant", content=exchange.text)]


@dataclass(frozen=True)
class Quest:
    """The last request."""

    content: str
    answer: str
    """The whole answer, with its prefix."""
    asked: tuple[int, ...]
    """Which needles, from 0; none where there is no such text."""


def make_quest(
    variant: Variant,
    needles: Sequence[Exchange],
    prefix: str,
    random: np.random.Generator,
) -> Quest | None:
    """Choose what is asked for; None where no needle can be told by a word of its own."""
    count, form, topic = len(needles), needles[0].form, needles[0].topic
    chosen = int(random.integers(count))
    asked: tuple[int, ...] = (chosen,)
    what = f"the {ordinal(chosen + 1)} {form} about {topic}"
    if variant == "from_end":
        back = count - chosen
        place = "last" if back == 1 else f"{ordinal(back)} to last"
        what = f"the {place} {form} about {topic}"
    elif variant == "attribute":
        words = [frozenset(content_words(needle.text)) for needle in needles]
        own = [only_here(words, number) for number in range(count)]
        able = [number for number in range(count) if own[number]]
        if not able:
            return None
        chosen = able[int(random.integers(len(able)))]
        asked = (chosen,)
        word = own[chosen][int(random.integers(len(own[chosen])))]
        what = f"the {form} about {topic} that has the word {word}"
    elif variant == "version":
        what = f"version {chosen + 1} of the {form} about {topic}"
    elif variant == "pair":
        other = int((chosen + 1 + random.integers(count - 1)) % count)
        asked = (chosen, other)
        places = f"the {ordinal(chosen + 1)} and the {ordinal(other + 1)}"
        what = f"{places} {form} about {topic}, with an empty line between them"
    elif variant == "absent":
        asked = ()
        what = f"the {ordinal(count + 1 + int(random.integers(3)))} {form} about {topic}"
    verb = {"tool": "found", "user_turn": "kept"}.get(variant, "wrote")
    content = f"Write {prefix} and directly after it, unchanged, {what} that you {verb} above."
    content = f"{content} {_ORDER}"
    if variant == "language":
        template = _LANGUAGES[int(random.integers(len(_LANGUAGES)))]
        content = template.format(prefix=prefix, number=chosen + 1, form=form, topic=topic)
    text = "\n\n".join(needles[number].text for number in asked) or NONE
    return Quest(content, prefix + text, asked)
