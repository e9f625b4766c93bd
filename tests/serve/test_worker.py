"""The async interface: many callers, streams, cancelled callers, pushes between steps."""

import asyncio
import copy
from collections.abc import Coroutine
from typing import Any

import pytest
import torch
from tiny_engine import (
    GREEDY,
    assert_idle,
    expected_logprobs,
    naive_greedy,
    prompt_of,
    tiny_engine,
    tiny_model,
)

from fivefold.serve.request import RequestError, SamplingParams
from fivefold.serve.worker import Completion, Worker

LONG = SamplingParams(temperature=0, max_new_tokens=400)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


@pytest.mark.parametrize("overlaps", [False, True])
def test_concurrent_callers_get_their_own_answers(overlaps: bool) -> None:
    async def main() -> None:
        engine = tiny_engine(deterministic=True)
        async with Worker(engine, overlaps=overlaps) as worker:
            prompts = [prompt_of(8, seed) for seed in range(6)]
            done = await asyncio.gather(*(worker.generate(ids, GREEDY) for ids in prompts))
            for ids, completion in zip(prompts, done, strict=True):
                assert completion.ids == naive_greedy(tiny_model(), ids, 8)
                assert completion.versions == [(0, 8, 0)]
        assert_idle(engine)

    run(main())


def test_a_stream_ends_with_the_whole() -> None:
    async def main() -> None:
        async with Worker(tiny_engine()) as worker:
            events = [event async for event in worker.stream(prompt_of(8), GREEDY)]
            *tokens, last = events
            assert isinstance(last, Completion)
            assert [event.id for event in tokens if not isinstance(event, Completion)] == last.ids

    run(main())


def test_cancelled_callers_abort_their_requests() -> None:
    async def main() -> None:
        engine = tiny_engine()
        async with Worker(engine) as worker:
            waiting = asyncio.create_task(worker.generate(prompt_of(8), LONG))
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            stream = worker.stream(prompt_of(9), LONG)
            await anext(stream)
            await stream.aclose()  # pyright: ignore[reportAttributeAccessIssue]
            assert (await worker.generate(prompt_of(8), GREEDY)).finish == "length"
            load = await worker.call(lambda engine: engine.load())
            assert load["running_requests"] == load["waiting_requests"] == 0
        assert engine.statistics.finished["abort"] == 2
        assert_idle(engine)

    run(main())


def test_errors_reach_the_caller_and_nobody_else() -> None:
    async def main() -> None:
        async with Worker(tiny_engine()) as worker:
            good = asyncio.create_task(worker.generate(prompt_of(8), GREEDY))
            with pytest.raises(RequestError):
                await worker.generate([999], GREEDY)
            assert (await good).finish == "length"

    run(main())


def test_weights_are_pushed_between_steps() -> None:
    async def main() -> None:
        engine = tiny_engine(copy.deepcopy(tiny_model()))
        async with Worker(engine) as worker:
            rollout = asyncio.create_task(worker.generate(prompt_of(8), LONG))
            await asyncio.sleep(0.05)
            await worker.call(lambda engine: engine.pause("in_place"))
            await worker.call(lambda engine: engine.update_weights(None))
            await worker.call(lambda engine: engine.proceed())
            completion = await rollout
            assert [span.version for span in completion.versions] in ([0, 1], [1])
            assert completion.versions[-1].end == 400

    run(main())


def test_score_is_the_models_own() -> None:
    async def main() -> None:
        async with Worker(tiny_engine(deterministic=True)) as worker:
            rows = [prompt_of(20), prompt_of(33)]
            for ids, scores in zip(rows, await worker.score(rows), strict=True):
                assert scores[0] is None
                assert torch.equal(torch.tensor(scores[1:]), expected_logprobs(tiny_model(), ids))

    run(main())


def test_closing_aborts_what_runs() -> None:
    async def main() -> None:
        engine = tiny_engine()
        worker = Worker(engine)
        task = asyncio.create_task(worker.generate(prompt_of(8), LONG))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(worker.close)
        assert (await task).finish == "abort"
        assert_idle(engine)

    run(main())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_a_step_reaches_every_caller() -> None:
    async def main() -> None:
        engine = tiny_engine()

        def break_down() -> bool:
            if engine.scheduler.waiting:
                raise OverflowError("the machine is on fire")
            return False

        engine.step = break_down  # pyright: ignore[reportAttributeAccessIssue]
        worker = Worker(engine)
        assert (await worker.generate(prompt_of(8), GREEDY)).finish == "abort"
        with pytest.raises(RuntimeError, match="has ended"):
            await worker.generate(prompt_of(8), GREEDY)
        await asyncio.to_thread(worker.close)

    run(main())


@pytest.mark.parametrize("patience", range(4))
def test_callers_that_leave_while_they_are_let_in_leave_nothing_behind(patience: int) -> None:
    async def main() -> None:
        engine = tiny_engine()
        async with Worker(engine) as worker:
            tasks = []
            for seed in range(50):
                task = asyncio.create_task(worker.generate(prompt_of(8, seed), LONG))
                for _ in range(patience):
                    await asyncio.sleep(0)
                if patience > 1:
                    # Let the engine's thread come to the job before the caller leaves.
                    await asyncio.sleep(0.001 * (seed % 3))
                task.cancel()
                tasks.append(task)
            await asyncio.gather(*tasks, return_exceptions=True)
            load = await worker.call(lambda engine: engine.load())
            while load["running_requests"] + load["waiting_requests"]:
                await asyncio.sleep(0.01)
                load = await worker.call(lambda engine: engine.load())
            tokens = await worker.call(lambda engine: engine.statistics.output_tokens)
        # 50 requests of 400 tokens would have run to their end.
        assert tokens < 50 * 100
        assert_idle(engine)

    run(main())
