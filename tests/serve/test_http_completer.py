"""One contract for every Completer: engine, SGLang's shape, OpenAI's route, script."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import numpy as np
import pytest
from live_server import Live, live_server, random_model
from tiny_engine import prompt_of

from fivefold.serve.embedded import EngineCompleter
from fivefold.text.completer import (
    Completer,
    CompletionParams,
    OverloadedError,
    RefusedError,
)
from fivefold.text.openai_completer import OpenAICompleter
from fivefold.text.scripted import ScriptedCompleter
from fivefold.text.sglang_completer import SGLangCompleter

PROMPT = prompt_of(20, vocab_size=256)
KINDS = ["engine", "sglang", "openai", "script"]
Check = Callable[[Completer], Awaitable[None]]


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live_server(random_model(), most_waiting=64) as live:
        yield live


@contextlib.asynccontextmanager
async def opened(kind: str, live: Live) -> AsyncIterator[Completer]:
    match kind:
        case "engine":
            yield EngineCompleter(live.served.worker)
        case "sglang":
            async with SGLangCompleter(live.url) as completer:
                yield completer
        case "openai":
            async with OpenAICompleter(live.url, "tiny") as completer:
                yield completer
        case "script":
            yield ScriptedCompleter(420)


def check(kind: str, live: Live, body: Check) -> None:
    async def main() -> None:
        async with opened(kind, live) as completer:
            await asyncio.wait_for(body(completer), 60)

    asyncio.run(main())
    live.wait_until_idle()


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_complete(kind: str, server: Live) -> None:
    async def body(completer: Completer) -> None:
        params = CompletionParams(max_new_tokens=7, seed=1, ignore_eos=True)
        done = await completer.generate(PROMPT, params, rid=f"named-{kind}", session="s")
        assert len(done.ids) == len(done.logprobs) == 7
        assert done.finish == "length"
        assert done.versions == ((0, 7, 0),)
        assert all(logprob <= 0 for logprob in done.logprobs)
        again = await completer.generate(PROMPT, params)
        assert again.ids == done.ids
        assert again.logprobs == pytest.approx(done.logprobs, abs=1e-4)
        other = await completer.generate(PROMPT, CompletionParams(max_new_tokens=7, seed=2))
        assert other.ids != done.ids

    check(kind, server, body)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_logprobs_of_generation(kind: str, server: Live) -> None:
    async def body(completer: Completer) -> None:
        params = CompletionParams(max_new_tokens=9, seed=5, ignore_eos=True)
        prompts = [PROMPT, PROMPT[:5]]
        done = [await completer.generate(prompt, params) for prompt in prompts]
        rows = [[*prompt, *each.ids] for prompt, each in zip(prompts, done, strict=True)]
        scores = await completer.score(rows)
        for prompt, each, row in zip(prompts, done, scores, strict=True):
            assert row[0] is None
            assert None not in row[1:]
            assert row[len(prompt) :] == pytest.approx(list(each.logprobs), abs=1e-4)
        assert await completer.score([]) == []

    check(kind, server, body)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_id_ends_and_is_returned(kind: str, server: Live) -> None:
    async def body(completer: Completer) -> None:
        whole = await completer.generate(PROMPT, CompletionParams(20, 0, ignore_eos=True))
        stop = whole.ids[5]
        params = CompletionParams(20, 0, stop_ids=(stop,), ignore_eos=True)
        done = await completer.generate(PROMPT, params)
        assert done.ids == whole.ids[: whole.ids.index(stop) + 1]
        assert done.finish == "stop"

    check(kind, server, body)


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_is_an_answer(kind: str, server: Live) -> None:
    async def body(completer: Completer) -> None:
        done = await completer.generate(PROMPT, CompletionParams(max_new_tokens=0))
        assert (done.ids, done.logprobs, done.finish, done.versions) == ((), (), "length", ())

    check(kind, server, body)


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_no_meaning_is_refused(kind: str, server: Live) -> None:
    async def body(completer: Completer) -> None:
        for ids in ([], [420], [-1]):
            with pytest.raises(RefusedError):
                await completer.generate(ids)
            with pytest.raises(RefusedError):
                await completer.score([ids])
        with pytest.raises(RefusedError):
            await completer.generate(PROMPT, CompletionParams(max_new_tokens=-1))

    check(kind, server, body)


@pytest.mark.parametrize("kind", KINDS)
def test_concurrent_callers_get_their_own_answers(kind: str, server: Live) -> None:
    async def body(completer: Completer) -> None:
        async def ask(seed: int) -> tuple[int, ...]:
            params = CompletionParams(max_new_tokens=6, seed=seed)
            return (await completer.generate(PROMPT[: 4 + seed % 8], params)).ids

        alone = [await ask(seed) for seed in range(16)]
        assert await asyncio.gather(*map(ask, range(16))) == alone

    check(kind, server, body)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_cancelled_caller_leaves_nothing_behind(kind: str, server: Live) -> None:
    async def body(completer: Completer) -> None:
        long = CompletionParams(max_new_tokens=900, ignore_eos=True)
        task = asyncio.create_task(completer.generate(PROMPT, long))
        while not server.served.engine.scheduler.running:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await completer.generate(PROMPT, CompletionParams(2, 0))).ids

    aborted = server.served.engine.statistics.finished["abort"]
    check(kind, server, body)
    assert server.served.engine.statistics.finished["abort"] == aborted + 1


@pytest.mark.parametrize("kind", KINDS[:3])
def test_too_much_at_once_is_told(kind: str, server: Live) -> None:
    async def body(completer: Completer) -> None:
        long = CompletionParams(max_new_tokens=900, ignore_eos=True)
        # 16 may run and 64 may wait.
        tasks = [asyncio.create_task(completer.generate([i], long)) for i in range(120)]
        while sum(task.done() for task in tasks) < 40:
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [result for result in results if isinstance(result, OverloadedError)]
        left = [result for result in results if isinstance(result, asyncio.CancelledError)]
        assert len(refused) >= 40
        assert len(refused) + len(left) == 120

    check(kind, server, body)


@pytest.mark.parametrize("kind", ["engine", "sglang"])
def test_routing_has_a_row_for_each_position(kind: str, server: Live) -> None:
    async def body(completer: Completer) -> None:
        params = CompletionParams(5, 0, ignore_eos=True, returns_routing=True)
        done = await completer.generate(prompt_of(13, vocab_size=200), params)
        assert done.routed_experts is not None
        assert done.routed_experts.dtype == np.int32
        assert done.routed_experts.shape == (13 + 5 - 1, 1, 4)
        assert (done.routed_experts >= 0).all()

    check(kind, server, body)
