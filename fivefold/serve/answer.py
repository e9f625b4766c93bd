"""What both OpenAI routes share: sampling settings, usage, log-probabilities, event streams."""

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from fivefold.serve.fault import answer_fault, unless_gone
from fivefold.serve.native import EVENT_STREAM, read_bias, refused
from fivefold.serve.openai_schema import SamplingBody
from fivefold.serve.reader import StopReader, stop_rule
from fivefold.serve.request import SamplingParams, TokenLogprob
from fivefold.serve.served import Served, gather_all, merge
from fivefold.serve.worker import Completion, NewToken
from fivefold.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Choice:
    """One answer to make."""

    index: int
    prompt: list[int]
    params: SamplingParams


def sampling_params(
    body: SamplingBody,
    *,
    max_new_tokens: int,
    top_logprobs: int,
    k: int,
    prompt_logprobs_begin: int | None = None,
) -> SamplingParams:
    """Return the settings of a request's k-th answer.

    Raises:
        RequestError: a setting that cannot be honoured.
    """
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(body, name):
            raise refused(f"`{name}` of 0: penalties are not supported", str(getattr(body, name)))
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=max(body.top_k or 0, 0),
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        seed=None if body.seed is None else body.seed + k,
        stop_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=body.ignore_eos,
        logit_bias=read_bias(body.logit_bias),
        top_logprobs=top_logprobs,
        prompt_logprobs_begin=prompt_logprobs_begin,
    )


def usage_of(prompt_tokens: int, done: Sequence[Completion], reasoning: int = 0) -> dict[str, Any]:
    """Return OpenAI's usage; choices of one prompt count it once."""
    told = sum(len(completion.ids) for completion in done)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": told,
        "total_tokens": prompt_tokens + told,
        "prompt_tokens_details": {"cached_tokens": sum_cached(done, prompt_tokens)},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def sum_cached(done: Sequence[Completion], prompt_tokens: int) -> int:
    """Return the prompt tokens from the cache, of all prompts; never more than there are."""
    return min(sum(completion.cached_tokens for completion in done), prompt_tokens)


def spell(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    """Return a token with its bytes and its log-probability, as chats report it."""
    raw = tokenizer.decode_bytes([token])
    return {"token": raw.decode("utf-8", "replace"), "bytes": list(raw), "logprob": logprob}


def token_logprob(tokenizer: Tokenizer, token: int, score: TokenLogprob) -> dict[str, Any]:
    """Return one entry of a chat's log-probabilities; they are the model's own."""
    top = [spell(tokenizer, other, raw) for other, raw in score.top]
    return {**spell(tokenizer, token, score.raw), "top_logprobs": top}


async def run_choices(
    served: Served,
    body: SamplingBody,
    choices: Sequence[Choice],
    readers: Callable[[], StopReader],
    rid: str,
    request: Request,
) -> list[Completion]:
    """Run all choices to their end; the client's leaving aborts them."""
    runs = [
        served.complete(choice.prompt, choice.params, **_options(body, choice, readers, rid))
        for choice in choices
    ]
    return await unless_gone(request, gather_all(runs))


async def stream_choices(
    served: Served,
    body: SamplingBody,
    choices: Sequence[Choice],
    readers: Callable[[], StopReader],
    rid: str,
    request: Request,
    chunks: "Chunks",
) -> StreamingResponse:
    """Stream all choices as they come; closing the connection aborts them."""
    events = merge(
        [
            served.stream(choice.prompt, choice.params, **_options(body, choice, readers, rid))
            for choice in choices
        ]
    )
    # The first event decides about the status: until then a refusal can still be one.
    first = await unless_gone(request, anext(events))  # pyright: ignore[reportArgumentType]

    async def lines() -> AsyncIterator[str]:
        try:
            for chunk in chunks.begin():
                yield to_event(chunk)
            event: tuple[int, NewToken | Completion] | None = first
            while event is not None:
                index, told = event
                if isinstance(told, Completion):
                    made = chunks.finish(index, told)
                else:
                    made = chunks.token(index, told)
                for chunk in made:
                    yield to_event(chunk)
                event = await anext(events, None)
            for chunk in chunks.end():
                yield to_event(chunk)
        except Exception as error:  # noqa: BLE001  # the status is sent: the stream tells it
            yield f"data: {bytes(answer_fault(error).body).decode()}\n\n"
        finally:
            await events.aclose()  # pyright: ignore[reportAttributeAccessIssue]
        yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type=EVENT_STREAM)


def to_event(chunk: dict[str, Any]) -> str:
    """Return one server-sent event."""
    return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"


def _options(
    body: SamplingBody, choice: Choice, readers: Callable[[], StopReader], rid: str
) -> dict[str, Any]:
    return {
        "rid": f"{rid}-{choice.index}" if choice.index else rid,
        "stops": stop_rule(readers()) if body.stop else None,
        "priority": body.priority,
        "salt": body.cache_salt or "",
    }


class Chunks(ABC):
    """Turns what happens to choices into the chunks of one route."""

    def __init__(self, head: dict[str, Any], body: SamplingBody, prompt_tokens: int) -> None:
        """`head` stands in every chunk."""
        self.head = head
        self._prompt_tokens = prompt_tokens
        self._has_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._done: list[Completion] = []
        self.reasoning_tokens = 0

    def chunk(self, choice: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Return a chunk with one choice."""
        usage = {"usage": None} if self._has_usage else {}
        return {**self.head, "choices": [choice], **usage, **more}

    def begin(self) -> list[dict[str, Any]]:
        """Return what comes before any token."""
        return []

    @abstractmethod
    def token(self, index: int, new: NewToken) -> list[dict[str, Any]]:
        """Return what a token adds."""

    def finish(self, index: int, completion: Completion) -> list[dict[str, Any]]:
        """Return what the end of a choice adds."""
        self._done.append(completion)
        return []

    def end(self) -> list[dict[str, Any]]:
        """Return what comes after the last choice."""
        if not self._has_usage:
            return []
        usage = usage_of(self._prompt_tokens, self._done, self.reasoning_tokens)
        return [{**self.head, "choices": [], "usage": usage}]
