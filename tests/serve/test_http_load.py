"""Many clients at once, some of whom leave: everybody is answered and nothing is left behind."""

import asyncio
import gc
import random
import resource
import time
from typing import Any

import httpx
import pytest
from live_server import Live, live_server, make_served, random_model
from tiny_engine import assert_idle, prompt_of

from fivefold.serve.request import SamplingParams

LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100)


async def visit(client: httpx.AsyncClient, number: int, *, may_leave: bool) -> str:
    """Make one request of a kind that the number decides; return what became of it."""
    chance = random.Random(number)
    kind = chance.choice(["chat", "chat stream", "text", "ids", "score", "bad"])
    leaves = may_leave and chance.random() < 0.2
    tokens = chance.randrange(1, 12)
    prompt = prompt_of(chance.randrange(1, 40), chance.randrange(8), vocab_size=256)
    bodies: dict[str, tuple[str, Any]] = {
        "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
        "text": ("/v1/completions", {"prompt": "some words" * chance.randrange(1, 4)}),
        "ids": ("/generate", {"input_ids": prompt, "sampling_params": {"max_new_tokens": tokens}}),
        "score": (
            "/generate",
            {
                "input_ids": [prompt, prompt],
                "sampling_params": {"max_new_tokens": 0},
                "return_logprob": True,
                "logprob_start_len": 0,
            },
        ),
        "bad": ("/generate", {"input_ids": [9999]}),
    }
    path, body = bodies[kind.split()[0]]
    body = {**body, "stream": kind.endswith("stream"), "max_tokens": tokens}
    try:
        async with asyncio.timeout(chance.random() * 0.2 if leaves else 110):
            reply = await client.post(path, json=body)
    except TimeoutError:
        assert leaves
        return "left"
    assert reply.status_code == (400 if kind == "bad" else 200), reply.text
    if kind.endswith("stream"):
        assert reply.text.endswith("data: [DONE]\n\n")
        assert '"finish_reason":"' in reply.text
        assert '"error"' not in reply.text
    return kind


async def visit_all(live: Live, numbers: range) -> list[str]:
    async with httpx.AsyncClient(base_url=live.url, limits=LIMITS, timeout=110) as client:
        return await asyncio.gather(*(visit(client, n, may_leave=True) for n in numbers))


def test_200_requests_at_once_are_all_answered() -> None:
    with live_server(random_model(), pool_tokens=1024) as live:
        outcomes = asyncio.run(visit_all(live, range(200)))
        assert set(outcomes) == {"chat", "chat stream", "text", "ids", "score", "bad", "left"}
        live.wait_until_idle()


def test_a_client_that_leaves_at_once_leaves_nothing() -> None:
    """The request may be in the inbox, half added, or computing when its caller is cancelled."""
    params = SamplingParams(max_new_tokens=900, ignore_eos=True)

    async def leave_all() -> None:
        served = make_served(random_model())
        for number in range(200):
            work = served.complete([1, 2, 3], params, rid=f"r{number}")
            task = asyncio.create_task(work)
            for _ in range(1 + number % 4):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.sleep(0)  # the last abort is posted by now, and the next call comes after it
        await served.call(assert_idle)
        await asyncio.to_thread(served.worker.close)

    asyncio.run(leave_all())


@pytest.mark.slow
def test_2000_requests_at_once_are_all_answered() -> None:
    with live_server(random_model(), pool_tokens=1024, most_running=32) as live:
        outcomes = asyncio.run(visit_all(live, range(2000)))
        assert len(outcomes) == 2000
        live.wait_until_idle(60)


def most_resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seconds", [20, 900], ids=["brief", "15_minutes"])
def test_a_soak_keeps_memory_flat(seconds: int) -> None:
    """After a warm-up, waves of 100 requests may add 40 MB to the peak, whatever their number."""
    with live_server(random_model(), pool_tokens=1024) as live:
        for wave in range(3):
            asyncio.run(visit_all(live, range(100 * wave, 100 * (wave + 1))))
        gc.collect()
        before = most_resident_bytes()
        end = time.monotonic() + seconds
        wave = 3
        while time.monotonic() < end:
            asyncio.run(visit_all(live, range(100 * wave, 100 * (wave + 1))))
            live.wait_until_idle()
            wave += 1
        assert wave > 4
        assert most_resident_bytes() - before < 40e6
