"""The HTTP completers against endpoints that fail: each fault has one name. The script too."""

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest

from fivefold.text.completer import (
    Completer,
    CompletionParams,
    EndpointError,
    OverloadedError,
    RefusedError,
)
from fivefold.text.openai_completer import OpenAICompleter
from fivefold.text.scripted import Fault, ScriptedCompleter
from fivefold.text.sglang_completer import SGLangCompleter, write_sampling

Handler = Callable[[httpx.Request], httpx.Response]


def meta(**fields: Any) -> dict[str, Any]:
    whole = {
        "finish_reason": {"type": "length", "length": 2},
        "cached_tokens": 3,
        "output_token_logprobs": [[-0.5, 7, None], [-1.5, 8, None]],
        "weight_version": "4",
    }
    return {"text": "", "output_ids": [7, 8], "meta_info": {**whole, **fields}}


def choice(**fields: Any) -> dict[str, Any]:
    whole = {
        "index": 0,
        "text": "",
        "finish_reason": "length",
        "token_ids": [7, 8],
        "logprobs": {"token_logprobs": [-0.5, -1.5]},
    }
    return {"choices": [{**whole, **fields}]}


def completer_on(kind: str, handler: Handler) -> Completer:
    transport = httpx.MockTransport(handler)
    if kind == "sglang":
        return SGLangCompleter("http://x", transport=transport)
    return OpenAICompleter("http://x", "m", transport=transport)


def ask(completer: Completer) -> Coroutine[Any, Any, Any]:
    return completer.generate([1, 2], CompletionParams(2))


@pytest.mark.parametrize("kind", ["sglang", "openai"])
@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, {"error": {"message": "too long"}}, RefusedError),
        (404, {"detail": "no such model"}, RefusedError),
        (422, "plain", RefusedError),
        (429, {"error": {"message": "queue"}}, OverloadedError),
        (503, {}, OverloadedError),
        (500, {"error": "boom"}, EndpointError),
        (502, "<html>", EndpointError),
        (302, "", EndpointError),
        (200, "not json", EndpointError),
        (200, [], EndpointError),
        (200, {}, EndpointError),
    ],
)
def test_every_status_has_its_error(
    kind: str, status: int, body: Any, expected: type[Exception]
) -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        text = body if isinstance(body, str) else json.dumps(body)
        return httpx.Response(status, text=text)

    with pytest.raises(expected) as caught:
        asyncio.run(ask(completer_on(kind, handler)))
    if isinstance(body, dict) and "error" in body and status == 400:
        assert "too long" in str(caught.value)


@pytest.mark.parametrize("kind", ["sglang", "openai"])
@pytest.mark.parametrize(
    "fault", [httpx.ReadTimeout("slow"), httpx.ConnectError("no"), httpx.RemoteProtocolError("cut")]
)
def test_dropped_and_slow_connections_are_the_endpoints_fault(kind: str, fault: Exception) -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        raise fault

    with pytest.raises(EndpointError, match="http://x"):
        asyncio.run(ask(completer_on(kind, handler)))


WRONG = [
    ("sglang", meta(output_token_logprobs=[[-0.5, 7, None]])),
    ("sglang", meta(output_token_logprobs=[[-0.5, 7, None], [-0.5, 9, None]])),
    ("sglang", meta(output_token_logprobs=[[-9999.0, 7, None], [-0.5, 8, None]])),
    ("sglang", meta(output_token_logprobs=[[0.5, 7, None], [-0.5, 8, None]])),
    ("sglang", meta(output_token_logprobs=[[None, 7, None], [-0.5, 8, None]])),
    ("sglang", meta(finish_reason={"type": "tired"})),
    ("sglang", meta(finish_reason=None)),
    ("sglang", meta(routed_experts="AAAA")),
    ("sglang", meta(routed_experts="?")),
    ("sglang", meta(routed_experts="灯")),
    ("openai", choice(token_ids=None)),
    ("openai", choice(logprobs=None)),
    ("openai", choice(logprobs={"token_logprobs": [-0.5, -9999.0]})),
    ("openai", choice(finish_reason="tool_calls")),
    ("openai", {"choices": []}),
]


@pytest.mark.parametrize(("kind", "body"), WRONG)
def test_an_answer_that_contradicts_itself_is_refused(kind: str, body: dict[str, Any]) -> None:
    completer = completer_on(kind, lambda _: httpx.Response(200, json=body))
    with pytest.raises(EndpointError):
        asyncio.run(ask(completer))


def test_sglangs_own_answer_is_read() -> None:
    sent: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, json=meta())

    completer = completer_on("sglang", handler)
    done = asyncio.run(completer.generate([1, 2], CompletionParams(2, seed=9), session="s"))
    assert (done.ids, done.logprobs, done.cached_tokens) == ((7, 8), (-0.5, -1.5), 3)
    assert done.versions == ((0, 2, 4),)
    body = json.loads(sent[0].content)
    assert body["input_ids"] == [1, 2]
    assert body["sampling_params"]["sampling_seed"] == 9
    assert sent[0].headers["x-smg-routing-key"] == "s"


def test_an_engine_without_numbered_weights_tells_no_version() -> None:
    body = meta(weight_version="default")
    completer = completer_on("sglang", lambda _: httpx.Response(200, json=body))
    assert asyncio.run(ask(completer)).versions == ()


def test_scores_of_other_ids_are_refused() -> None:
    scored = meta(input_token_logprobs=[[None, 1, None], [-0.5, 3, None]])
    completer = completer_on("sglang", lambda _: httpx.Response(200, json=[scored]))
    with pytest.raises(EndpointError, match="other ids"):
        asyncio.run(completer.score([[1, 2]]))
    assert asyncio.run(completer.score([[1, 3]])) == [[None, -0.5]]


def test_keeping_all_is_minus_one_there() -> None:
    assert write_sampling(CompletionParams())["top_k"] == -1
    assert write_sampling(CompletionParams(top_k=3))["top_k"] == 3


def test_scripted_faults_come_in_order() -> None:
    async def main() -> None:
        faults = [
            Fault("drop"),
            Fault("error"),
            Fault("overload"),
            Fault("wrong"),
            Fault("slow", 0.01),
        ]
        completer = ScriptedCompleter(10, lambda ids, _: [*ids, 9], faults=faults)
        for expected in (EndpointError, EndpointError, OverloadedError):
            with pytest.raises(expected):
                await completer.generate([1])
        assert (await completer.generate([1])).ids == (2, 0)
        loop = asyncio.get_running_loop()
        began = loop.time()
        done = await completer.generate([1])
        assert loop.time() - began >= 0.009
        assert done.ids == (1, 9)
        assert done.logprobs == (-math.log(10),) * 2
        assert (done.finish, completer.calls) == ("stop", [(1,)] * 5)

    asyncio.run(main())
