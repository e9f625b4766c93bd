"""POST /generate in SGLang's shape: what RL rollouts and teachers speak.

Source: SGLang's native API. Each output token has its log-probability under the distribution that
it was drawn from (greedy: the model's), its weight version as spans, and on request the experts
that it went through.

Surprise: SGLang tells one `weight_version`; a rollout that a push has met in the middle has
several, so that `weight_version_spans` stands beside it.
"""

import base64
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from fivefold.serve.fault import answer_fault, unless_gone
from fivefold.serve.native_schema import GenerateBody, NativeSampling
from fivefold.serve.reader import TextReader, stop_rule
from fivefold.serve.request import RequestError, SamplingParams, TokenLogprob
from fivefold.serve.served import Served, gather_all, merge
from fivefold.serve.worker import Completion, NewToken

EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True)
class _Job:
    """One output to make."""

    rid: str
    ids: list[int]
    params: SamplingParams
    sampling: NativeSampling
    body: GenerateBody

    def reader(self, served: Served) -> TextReader:
        stops = stop_list(self.sampling.stop)
        hidden = () if self.sampling.no_stop_trim else self.params.stop_ids
        return TextReader(
            served.tokenizer,
            stops,
            hidden_ids=hidden,
            skip_special=self.sampling.skip_special_tokens,
        )

    def options(self, served: Served) -> dict[str, Any]:
        """Return what the engine wants to know beside ids and params."""
        stops = stop_rule(self.reader(served)) if self.sampling.stop else None
        salt = self.body.extra_key or ""
        return {"rid": self.rid, "stops": stops, "priority": self.body.priority, "salt": salt}


def generate_router(served: Served) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["native"])

    @router.post("/generate")
    async def generate(body: GenerateBody, request: Request) -> Response:
        """Continue or score token ids."""
        jobs, is_batch = _read_jobs(served, body)
        if body.stream:
            return await _stream(served, jobs, is_batch, request)
        began = time.perf_counter()
        runs = [served.complete(job.ids, job.params, **job.options(served)) for job in jobs]
        done = await unless_gone(request, gather_all(runs))
        seconds = time.perf_counter() - began
        answers = [
            _answer(served, job, completion, seconds)
            for job, completion in zip(jobs, done, strict=True)
        ]
        return JSONResponse(answers if is_batch else answers[0])

    return router


def stop_list(stop: str | list[str] | None) -> list[str]:
    """Return stop strings as a list."""
    return [stop] if isinstance(stop, str) else stop or []


def _read_jobs(served: Served, body: GenerateBody) -> tuple[list[_Job], bool]:
    prompts, is_batch = _prompts(served, body)
    samplings = body.sampling_params
    if not isinstance(samplings, list):
        samplings = [samplings] * len(prompts)
    rids = body.rid if isinstance(body.rid, list) else None
    for name, given in (("sampling_params", samplings), ("rid", rids)):
        if given is not None and len(given) != len(prompts):
            raise refused(f"`{name}` for each of {len(prompts)} prompts", f"{len(given)}")
    jobs: list[_Job] = []
    for place, (ids, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        rid = rids[place] if rids else body.rid or served.new_name("generate")
        assert isinstance(rid, str), "lists are taken apart"
        if body.logprob_start_len > len(ids):
            raise refused(f"`logprob_start_len` of at most {len(ids)}", f"{body.logprob_start_len}")
        for k in range(sampling.n):
            is_alone = len(prompts) == 1 and sampling.n == 1
            name = rid if is_alone or (rids and sampling.n == 1) else f"{rid}-{place}-{k}"
            jobs.append(_Job(name, ids, _params(body, sampling, k), sampling, body))
    if len({job.rid for job in jobs}) < len(jobs):
        raise refused("a `rid` of its own for each prompt", repr(body.rid))
    for job in jobs:
        served.check_prompt(job.ids, job.params)
    return jobs, is_batch or len(jobs) > 1


def _prompts(served: Served, body: GenerateBody) -> tuple[list[list[int]], bool]:
    if (body.input_ids is None) == (body.text is None):
        raise refused("either `input_ids` or `text`", "both" if body.text else "neither")
    if isinstance(body.text, str):
        return [served.tokenizer.prompt_ids(body.text)], False
    if body.text is not None:
        return [served.tokenizer.prompt_ids(text) for text in body.text], True
    ids: list[Any] = body.input_ids or []
    if ids and isinstance(ids[0], list):
        return ids, True
    return [ids], False


def _params(body: GenerateBody, sampling: NativeSampling, k: int) -> SamplingParams:
    begin = body.logprob_start_len if body.return_logprob else -1
    seed = sampling.sampling_seed
    return SamplingParams(
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_k=max(sampling.top_k, 0),
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        # The members of a group differ by their place in it.
        seed=None if seed is None else seed + k,
        stop_ids=tuple(sampling.stop_token_ids or ()),
        ignore_eos=sampling.ignore_eos,
        logit_bias=read_bias(sampling.logit_bias),
        top_logprobs=body.top_logprobs_num if body.return_logprob else 0,
        prompt_logprobs_begin=begin if begin >= 0 else None,
        returns_routing=body.return_routed_experts,
    )


def read_bias(bias: dict[str, float] | None) -> tuple[tuple[int, float], ...]:
    """Return a logit bias with its ids as numbers.

    Raises:
        RequestError: a key that is no id.
    """
    for key in bias or ():
        if not (key.isascii() and key.isdecimal() and len(key) < 12):
            raise refused("`logit_bias` by token id", repr(key))
    return tuple((int(key), amount) for key, amount in (bias or {}).items())


def refused(expected: str, found: str) -> RequestError:
    """Return the error of a request that asks for what there is not."""
    return RequestError(expected=expected, found=found, fix="Correct the request")


def _answer(served: Served, job: _Job, completion: Completion, seconds: float) -> dict[str, Any]:
    reader = job.reader(served)
    text = "".join(reader.push(token) for token in completion.ids) + reader.finish()
    if reader.matched and job.sampling.no_stop_trim:
        text += reader.matched
    meta = _meta(served, job, completion.ids, completion.logprobs, completion.cached_tokens)
    meta["finish_reason"] = _finish_reason(completion, reader.matched)
    meta["weight_version_spans"] = [list(span) for span in completion.versions]
    if completion.versions:
        meta["weight_version"] = str(completion.versions[-1].version)
    meta["e2e_latency"] = seconds
    if job.body.return_logprob and job.params.prompt_logprobs_begin is not None:
        places = job.ids[job.params.prompt_logprobs_begin :]
        scores = zip(completion.prompt_logprobs, places, strict=True)
        meta["input_token_logprobs"] = [
            [score, token, _spell(served, job, token)] for score, token in scores
        ]
    if completion.drafted:
        meta["spec_draft_tokens"] = completion.drafted
        meta["spec_accepted_tokens"] = completion.accepted
    if completion.routing is not None:
        # The last token has gone through no expert yet.
        known = completion.routing[: len(job.ids) + len(completion.ids) - 1].to(torch.int32)
        meta["routed_experts"] = base64.b64encode(known.numpy().tobytes()).decode()
        meta["routed_experts_shape"] = list(known.shape)
    warnings = [*job.body.unknown_fields(), *job.sampling.unknown_fields()]
    if warnings:
        meta["warnings"] = warnings
    return {"text": text, "output_ids": completion.ids, "meta_info": meta}


def _meta(
    served: Served,
    job: _Job,
    ids: Sequence[int],
    logprobs: Sequence[TokenLogprob],
    cached_tokens: int,
) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "id": job.rid,
        "finish_reason": None,
        "prompt_tokens": len(job.ids),
        "completion_tokens": len(ids),
        "cached_tokens": cached_tokens,
        "weight_version": str(served.engine.version),
    }
    if not job.body.return_logprob:
        return meta
    pairs = list(zip(ids, logprobs, strict=True))
    is_greedy = job.params.temperature == 0
    meta["output_token_logprobs"] = [
        [score.raw if is_greedy else score.sampled, token, _spell(served, job, token)]
        for token, score in pairs
    ]
    if job.params.top_logprobs:
        meta["output_top_logprobs"] = [
            [[raw, token, _spell(served, job, token)] for token, raw in score.top]
            for _, score in pairs
        ]
    return meta


def _spell(served: Served, job: _Job, token: int) -> str | None:
    return served.tokenizer.decode([token]) if job.body.return_text_in_logprobs else None


def _finish_reason(completion: Completion, matched: str | None) -> dict[str, Any]:
    match completion.finish:
        case "length":
            return {"type": "length", "length": len(completion.ids)}
        case "abort":
            return {"type": "abort", "message": "Aborted"}
    return {"type": "stop", "matched": matched or (completion.ids[-1] if completion.ids else None)}


async def _stream(
    served: Served, jobs: Sequence[_Job], is_batch: bool, request: Request
) -> Response:
    began = time.perf_counter()
    runs = [served.stream(job.ids, job.params, **job.options(served)) for job in jobs]
    events = merge(runs)
    # The first event decides about the status: until then a refusal can still be one.
    first = await unless_gone(request, anext(events))  # pyright: ignore[reportArgumentType]

    async def lines() -> AsyncIterator[str]:
        readers = [job.reader(served) for job in jobs]
        texts, ids = [""] * len(jobs), [[] for _ in jobs]
        scores: list[list[TokenLogprob]] = [[] for _ in jobs]
        try:
            event: tuple[int, NewToken | Completion] | None = first
            while event is not None:
                index, told = event
                job = jobs[index]
                if isinstance(told, Completion):
                    answer = _answer(served, job, told, time.perf_counter() - began)
                else:
                    texts[index] += readers[index].push(told.id)
                    ids[index].append(told.id)
                    scores[index].append(told.logprob)
                    meta = _meta(served, job, ids[index], scores[index], 0)
                    answer = {"text": texts[index], "output_ids": ids[index], "meta_info": meta}
                yield f"data: {json.dumps({**answer, 'index': index} if is_batch else answer)}\n\n"
                event = await anext(events, None)
        except Exception as error:  # noqa: BLE001  # the status is sent: the stream tells it
            yield f"data: {bytes(answer_fault(error).body).decode()}\n\n"
        finally:
            await events.aclose()  # pyright: ignore[reportAttributeAccessIssue]
        yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type=EVENT_STREAM)
