"""POST /v1/completions and GET /v1/models.

The legacy route continues text, or ids: with `return_token_ids` it is OpenAI's form of token in,
token out, and with `echo` and no new token it scores. Text is framed as a document's beginning
(`[gMASK]<sop>`), ids are taken as they are. Log-probabilities are the model's own.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from fivefold.serve.answer import (
    Choice,
    Chunks,
    run_choices,
    sampling_params,
    stream_choices,
    usage_of,
)
from fivefold.serve.native import refused, stop_list
from fivefold.serve.openai_schema import CompletionBody
from fivefold.serve.reader import TextReader
from fivefold.serve.request import TokenLogprob
from fivefold.serve.served import Served
from fivefold.serve.worker import Completion, NewToken

_DEFAULT_TOKENS = 16
"""OpenAI's `max_tokens` of this route."""
_MOST_CHOICES = 256


@dataclass(frozen=True)
class _Task:
    """A request, read."""

    served: Served
    body: CompletionBody
    rid: str
    prompts: list[list[int]]

    def reader(self) -> TextReader:
        hidden = (*(self.body.stop_token_ids or ()), *self.served.stop_ids)
        return TextReader(self.served.tokenizer, stop_list(self.body.stop), hidden_ids=hidden)

    def choices(self) -> list[Choice]:
        body = self.body
        most = _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        top = min(body.logprobs or 0, self.served.vocab_size)
        begin = 0 if body.echo and body.logprobs is not None else None
        return [
            Choice(
                place * (body.n or 1) + k,
                ids,
                sampling_params(
                    body, max_new_tokens=most, top_logprobs=top, k=k, prompt_logprobs_begin=begin
                ),
            )
            for place, ids in enumerate(self.prompts)
            for k in range(body.n or 1)
        ]

    def head(self) -> dict[str, Any]:
        head = {
            "id": self.rid,
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.served.name,
        }
        warnings = self.body.unknown_fields()
        return {**head, "warnings": warnings} if warnings else head

    def prompt_text(self, ids: list[int]) -> str:
        return self.served.tokenizer.decode(ids, skip_special=True)


def completion_router(served: Served) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["openai"])

    @router.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Continue text or ids."""
        served.check_model(body.model)
        task = _read(served, body, request)
        choices = task.choices()
        for choice in choices:
            served.check_prompt(choice.prompt, choice.params)
        arguments = (served, body, choices, task.reader, task.rid, request)
        if body.stream:
            return await stream_choices(*arguments, _TextChunks(task, choices))
        done = await run_choices(*arguments)
        return JSONResponse(_answer(task, choices, done))

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """Return the one model that is served."""
        return {"object": "list", "data": [_model(served)]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """Return the model of this name."""
        served.check_model(name)
        return _model(served)

    return router


def _model(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "fivefold",
        "root": served.checkpoint,
        "max_model_len": served.context_tokens,
    }


def _read(served: Served, body: CompletionBody, request: Request) -> _Task:
    prompts: list[Any]
    if isinstance(body.prompt, str) or not body.prompt or isinstance(body.prompt[0], int):
        prompts = [body.prompt]
    else:
        prompts = list(body.prompt)
    if len(prompts) * (body.n or 1) > _MOST_CHOICES:
        found = f"{len(prompts)} prompts x {body.n or 1}"
        raise refused(f"at most {_MOST_CHOICES} answers to one request", found)
    if body.echo and body.stream:
        raise refused("`echo` without `stream`", "both")
    ids = [
        served.tokenizer.prompt_ids(prompt) if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]
    named = body.request_id or request.headers.get("x-request-id")
    return _Task(served, body, named or served.new_name("cmpl"), ids)


def _answer(task: _Task, made: Sequence[Choice], done: Sequence[Completion]) -> dict[str, Any]:
    body = task.body
    choices = []
    for choice, completion in zip(made, done, strict=True):
        reader = task.reader()
        text = "".join(reader.push(token) for token in completion.ids) + reader.finish()
        ids, scores = list(completion.ids), [score.raw for score in completion.logprobs]
        tops: list[TokenLogprob | None] = list(completion.logprobs)
        if body.echo:
            text = task.prompt_text(choice.prompt) + text
            ids = [*choice.prompt, *ids]
            scores = [*completion.prompt_logprobs, *scores]
            tops = [*[None] * len(choice.prompt), *tops]
        told: dict[str, Any] = {
            "index": choice.index,
            "text": text,
            "logprobs": None,
            "finish_reason": completion.finish,
            "matched_stop": reader.matched,
        }
        if body.logprobs is not None:
            told["logprobs"] = _logprobs(task, ids, scores, tops)
        if body.return_token_ids:
            told["token_ids"] = ids
            told["prompt_token_ids"] = choice.prompt
            told["weight_version_spans"] = [list(span) for span in completion.versions]
        choices.append(told)
    usage = usage_of(sum(map(len, task.prompts)), done)
    return {**task.head(), "choices": choices, "usage": usage}


def _logprobs(
    task: _Task,
    ids: Sequence[int],
    scores: Sequence[float | None],
    tops: Sequence[TokenLogprob | None],
    begin: int = 0,
) -> dict[str, Any]:
    """Return the legacy form: four lists side by side; offsets count characters."""
    tokenizer = task.served.tokenizer
    tokens = [tokenizer.decode([token]) for token in ids]
    offsets, at = [], begin
    for token in tokens:
        offsets.append(at)
        at += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": list(scores),
        "top_logprobs": [
            {tokenizer.decode([token]): raw for token, raw in top.top} if top and top.top else None
            for top in tops
        ],
        "text_offset": offsets,
    }


class _TextChunks(Chunks):
    """The chunks of a streamed completion."""

    def __init__(self, task: _Task, choices: Sequence[Choice]) -> None:
        super().__init__(task.head(), task.body, sum(map(len, task.prompts)))
        self._task = task
        self._choices = choices
        self._readers = [task.reader() for _ in choices]
        self._characters = [0] * len(choices)
        self._is_first = [True] * len(choices)

    def token(self, index: int, new: NewToken) -> list[dict[str, Any]]:
        """Return the text of a token, if it completes any."""
        text = self._readers[index].push(new.id)
        more: dict[str, Any] = {}
        if self._task.body.logprobs is not None:
            begin = self._characters[index]
            scores, tops = [new.logprob.raw], [new.logprob]
            more["logprobs"] = _logprobs(self._task, [new.id], scores, tops, begin)
        if self._task.body.return_token_ids:
            more["token_ids"] = [new.id]
            if self._is_first[index]:
                more["prompt_token_ids"] = self._choices[index].prompt
        self._is_first[index] = False
        self._characters[index] += len(text)
        return [self._chunk(index, text, **more)] if text or more else []

    def finish(self, index: int, completion: Completion) -> list[dict[str, Any]]:
        """Return what was held back, and the reason of the end."""
        super().finish(index, completion)
        reader = self._readers[index]
        text = reader.finish()
        reason = completion.finish
        return [self._chunk(index, text, finish_reason=reason, matched_stop=reader.matched)]

    def _chunk(self, index: int, text: str, **more: Any) -> dict[str, Any]:
        plain = {"index": index, "text": text, "logprobs": None, "finish_reason": None}
        return self.chunk({**plain, **more})
