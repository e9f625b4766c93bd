"""MRCR-like conversations: many requests, several of them equal, one answer to be given again.

After OpenAI's MRCR (on Michelangelo's multi-round co-reference resolution, arXiv:2409.12640): the
needles are 2, 4 or 8 answers to the same request; distractors share their form or their topic; the
last turn asks for one of the needles, after a random prefix. Ten variants ask otherwise, see
`mrcr_variant`. As many distractors stand between as the context holds.

A conversation comes out twice: as messages, for fine-tuning, of which only the last turn is
learned; and written out as a document, for mid-training. Its dependency: the end on each needle
that is asked for.
"""

from collections.abc import Iterator

import numpy as np

from fivefold.data.document import Document, document_id
from fivefold.data.long.config import LongConfig, Variant
from fivefold.data.long.gap import Statistics
from fivefold.data.long.library import Library
from fivefold.data.long.made import Made, Unit, generator_for
from fivefold.data.long.measure import Ruler
from fivefold.data.long.mrcr_text import PROSE, STRUCTURED, Pool, collect_passages, put_into_form
from fivefold.data.long.mrcr_variant import (
    Exchange,
    Quest,
    exchange_messages,
    forms_for,
    make_quest,
)
from fivefold.text.conversation import Message, write_messages

_PREFIX_CHARACTERS = 10
_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
_SPARE_TOKENS = 32
"""Room that is left for sizes of parts that do not add up."""


class Mrcr:
    """Makes conversations; the units are numbers, and no documents come in."""

    name = "mrcr"

    def __init__(self, library: Library, config: LongConfig, ruler: Ruler) -> None:
        """Collect passages for all conversations."""
        assert config.mrcr
        self._config = config.mrcr
        self._seed = config.seed
        self._ruler = ruler
        self._room = ruler.room(config.context_tokens)
        self._pool: Pool = collect_passages(
            library,
            self._config.min_passage_characters,
            self._config.max_passage_characters,
            max(self._config.needles),
        )
        self._topics = list(self._pool.topics)
        self.statistics = Statistics()

    def units(self, rank: int, world_size: int) -> Iterator[Unit]:
        """Yield every n-th conversation, as an empty document with its name."""
        for number in range(rank, self._config.conversations, world_size):
            variant, needles = self._kind(number)
            url = f"{variant}/{needles}/{number}"
            yield Unit(
                (Document(document_id(self.name, url), "", self.name, url, "en"),), (number,)
            )

    def _kind(self, number: int) -> tuple[Variant, int]:
        variants, needles = self._config.variants, self._config.needles
        return variants[number % len(variants)], needles[number // len(variants) % len(needles)]

    def make(self, unit: Unit) -> list[Made]:
        """See `Method`."""
        planned = unit.documents[0]
        if len(self._topics) < 2:
            return [Made(planned, "mrcr.few_topics")]
        variant, count = self._kind(unit.places[0])
        random = generator_for(self._seed, planned.id)
        needles, numbers = self._needles(variant, count, random)
        prefix = "".join(
            _LETTERS[k] for k in random.integers(len(_LETTERS), size=_PREFIX_CHARACTERS)
        )
        quest = make_quest(variant, needles, prefix, random)
        if quest is None:
            return [Made(planned, "mrcr.no_word_of_its_own")]
        turns = self._fill(variant, needles, quest, set(numbers), random)
        if turns is None:
            return [Made(planned, "mrcr.no_room")]
        return [Made(planned, sequence=self._compose(planned, variant, count, turns, quest))]

    def _needles(
        self, variant: Variant, count: int, random: np.random.Generator
    ) -> tuple[list[Exchange], list[int]]:
        topic = self._topics[int(random.integers(len(self._topics)))]
        form = forms_for(variant, PROSE[int(random.integers(len(PROSE)))], random)
        able = self._pool.topics[topic]
        numbers = [able[k] for k in random.permutation(len(able))[:count]]
        return [
            Exchange(
                form,
                topic,
                put_into_form(self._pool.passages[number], topic, form),
                place + 1 if variant == "version" else 1,
            )
            for place, number in enumerate(numbers)
        ], numbers

    def _fill(
        self,
        variant: Variant,
        needles: list[Exchange],
        quest: Quest,
        used: set[int],
        random: np.random.Generator,
    ) -> list[tuple[list[Message], int]] | None:
        """Return the turns in order, each with its needle's number or -1; None: no room."""
        turns = [
            (exchange_messages(one, variant, number, random), number)
            for number, one in enumerate(needles)
        ]
        last = [Message(role="user", content=quest.content)]
        last.append(Message(role="assistant", content=quest.answer))
        left = self._room - _SPARE_TOKENS - self._ruler.size(transcript(last))
        left -= sum(self._ruler.size(transcript(messages)) for messages, _ in turns)
        if left < 0:
            return None
        between: list[tuple[list[Message], int]] = []
        while left > 0:
            exchange = self._distractor(needles[0], len(between), used, random)
            if exchange is None:
                break
            messages = exchange_messages(exchange, variant, len(needles) + len(between), random)
            left -= self._ruler.size(transcript(messages))
            if left >= 0:
                between.append((messages, -1))
        # Needles keep their order among themselves: it is what is asked for.
        labels = random.permutation(np.repeat([0, 1], [len(turns), len(between)]))
        needle, other = iter(turns), iter(between)
        ordered = [next(needle) if label == 0 else next(other) for label in labels]
        return [*ordered, (last, -1)]

    def _distractor(
        self, needle: Exchange, number: int, used: set[int], random: np.random.Generator
    ) -> Exchange | None:
        """Return an exchange with the needles' form, or their topic, by turns; None: used up.

        Where the topic's passages are used up, another topic takes the place.
        """
        forms = [form for form in (*PROSE, *STRUCTURED) if form != needle.form]
        own = [n for n in self._pool.topics[needle.topic] if n not in used]
        if number % 2 and own:
            topic, form = needle.topic, forms[int(random.integers(len(forms)))]
            chosen = own[int(random.integers(len(own)))]
        else:
            for _ in range(100):
                topic = self._topics[int(random.integers(len(self._topics)))]
                able = [n for n in self._pool.topics[topic] if n not in used]
                if topic != needle.topic and able:
                    break
            else:
                return None
            form, chosen = needle.form, able[int(random.integers(len(able)))]
        used.add(chosen)
        return Exchange(form, topic, put_into_form(self._pool.passages[chosen], topic, form))

    def _compose(
        self,
        planned: Document,
        variant: Variant,
        count: int,
        turns: list[tuple[list[Message], int]],
        quest: Quest,
    ) -> Document:
        messages = [
            one if turn is turns[-1][0] or one.role != "assistant" else _unlearned(one)
            for turn, _ in turns
            for one in turn
        ]
        sizes = self._ruler.sizes([transcript(turn) for turn, _ in turns]).tolist()
        begins = np.cumsum([0, *sizes])
        total = int(begins[-1])
        self.statistics.enter_sequence(total)
        depths = []
        for (_, needle), begin in zip(turns, begins.tolist(), strict=False):
            if needle in quest.asked:
                depths.append(round(begin / total, 4))
                self.statistics.enter_dependency(begin, int(begins[-2]), total)
        self.statistics.enter_value("turns in a conversation", len(turns))
        meta = {
            "variant": variant,
            "needles": count,
            "answer": quest.answer,
            "prefix": quest.answer[:_PREFIX_CHARACTERS],
            "depths": depths,
            "messages": write_messages(messages),
        }
        text = transcript(messages)
        return Document(planned.id, text, self.name, planned.url, planned.lang, meta)


def _unlearned(message: Message) -> Message:
    return message.model_copy(update={"loss": False})


def transcript(messages: list[Message]) -> str:
    """Return messages written out as text."""
    names = {"user": "User", "assistant": "Assistant", "observation": "Result", "system": "System"}
    parts = []
    for message in messages:
        calls = "".join(
            f"{call.name}({', '.join(f'{k}={v!r}' for k, v in call.arguments.items())})"
            for call in message.tool_calls
        )
        parts.append(f"{names[message.role]}: {message.content}{calls}\n\n")
    return "".join(parts)
