"""Marks from any server that speaks OpenAI's chat protocol, read strictly.

The rubric is additive, 0 to 5, after FineWeb-Edu's (arXiv:2406.17557, appendix F): a point for each
thing that is there. Every text is asked about twice, the text before the rubric and after it; where
the marks lie more than `max_disagreement` apart, a third time, and the median counts, otherwise the
mean. The answer must be the JSON object `{"score": n}` and nothing else: anything else is a
failure, NaN, counted by whoever asks, never a 0.

Chats and not ids go over the wire: the server's own template is what its model was tuned with.
"""

import asyncio
import json
import logging
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from fivefold.data.maths.config import ScorerConfig
from fivefold.errors import MissingFileError
from fivefold.text.completer import EndpointError, OverloadedError
from fivefold.text.endpoint import Endpoint, RefusedContentError, WireReply

logger = logging.getLogger(__name__)

_PATH = "/v1/chat/completions"
_WAIT_SECONDS = 1.0
RUBRIC = """Judge how useful a text is for learning mathematics or science. Start at 0, add 1 for \
each of these that holds, up to 5:
- it is about mathematics or a science;
- it states facts, definitions or results that a learner can use;
- it explains or derives them instead of only stating them;
- it is coherent from beginning to end, with its formulas intact;
- it teaches as a good textbook or lecture does, without advertising or filler."""
_FORM = 'Answer with the JSON object {"score": n} and nothing else, n an integer from 0 to 5.'
_PROMPTS = (
    "{rubric}\n\nThe text:\n<text>\n{text}\n</text>\n\n{form}",
    "The text:\n<text>\n{text}\n</text>\n\n{rubric}\n\n{form}",
    "{rubric}\n\n{form}\n\n<text>\n{text}\n</text>",
)


class _Message(WireReply):
    content: str | None = None


class _Choice(WireReply):
    message: _Message


class _Reply(WireReply):
    choices: list[_Choice]


class EndpointScorer:
    """Asks a server for marks, as a `Scorer`."""

    def __init__(
        self,
        config: ScorerConfig,
        transport: httpx.AsyncBaseTransport | None = None,
        rubric: str = RUBRIC,
    ) -> None:
        """Ask by `rubric`; read the key, if there is one.

        Raises:
            MissingFileError: there is no such file.
        """
        self._config = config
        self._transport = transport
        self._rubric = rubric
        self._key = _read_key(config.api_key_file)
        self._refused: list[RefusedContentError] = []

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the marks, 0 to 5; NaN where no answer, or none of the form, came.

        Raises:
            RefusedError: the server refuses every request.
        """
        self._refused.clear()
        marks = np.array(asyncio.run(self._score(texts)), dtype=np.float64)
        if self._refused:
            logger.warning(
                "%d requests for marks refused, the first: %s", len(self._refused), self._refused[0]
            )
        return marks

    async def _score(self, texts: Sequence[str]) -> list[float]:
        config = self._config
        endpoint = Endpoint(
            config.url,
            timeout_seconds=config.timeout_seconds,
            connections=config.connections,
            api_key=self._key,
            transport=self._transport,
        )
        turns = asyncio.Semaphore(config.connections)
        try:
            return await asyncio.gather(*(self._judge(endpoint, turns, text) for text in texts))
        finally:
            await endpoint.close()

    async def _judge(self, endpoint: Endpoint, turns: asyncio.Semaphore, text: str) -> float:
        marks = [await self._mark(endpoint, turns, prompt, text) for prompt in _PROMPTS[:2]]
        told = [mark for mark in marks if mark is not None]
        if len(told) == 2 and abs(told[0] - told[1]) <= self._config.max_disagreement:
            return statistics.fmean(told)
        marks.append(await self._mark(endpoint, turns, _PROMPTS[2], text))
        told = [mark for mark in marks if mark is not None]
        return float(statistics.median(told)) if len(told) >= 2 else math.nan

    async def _mark(
        self, endpoint: Endpoint, turns: asyncio.Semaphore, prompt: str, text: str
    ) -> int | None:
        body = {
            "model": self._config.served_model,
            "messages": [
                {
                    "role": "user",
                    "content": prompt.format(rubric=self._rubric, text=text, form=_FORM),
                }
            ],
            "temperature": 0,
            "max_tokens": 32,
        }
        for attempt in range(self._config.attempts):
            try:
                async with turns:
                    document = await endpoint.post(_PATH, body)
                reply = endpoint.read(_Reply, document, _PATH)
            except RefusedContentError as error:
                self._refused.append(error)
                return None
            # A failure is counted; any other refusal is the user's mistake and ends the run.
            except (OverloadedError, EndpointError):
                if attempt + 1 < self._config.attempts:
                    await asyncio.sleep(_WAIT_SECONDS * 2**attempt)
                continue
            return parse_mark(reply.choices[0].message.content or "") if reply.choices else None
        return None


def parse_mark(answer: str) -> int | None:
    """Return the mark of an answer; None unless it is the object that was asked for."""
    try:
        value = json.loads(answer)
    except ValueError:
        return None
    if not isinstance(value, dict) or value.keys() != {"score"}:
        return None
    mark = value["score"]
    return mark if isinstance(mark, int) and not isinstance(mark, bool) and 0 <= mark <= 5 else None


def _read_key(path: str) -> str | None:
    if not path:
        return None
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingFileError(
            expected=f"a file with the server's key at `{path}`",
            found="nothing",
            fix="Correct `scorer.api_key_file`, or leave it empty",
        )
    return file.read_text().strip()
