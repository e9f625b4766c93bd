"""What a server is sent and should not be: the answer is an error object, and nothing leaks."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from live_server import Live, live_server, random_model
from openai import OpenAI

from fivefold.errors import ConfigError
from fivefold.serve.launch import listen

CHAT = "/v1/chat/completions"
USER: Any = [{"role": "user", "content": "hi"}]
LONG = {"max_tokens": 900, "ignore_eos": True}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live_server(random_model(), most_waiting=8, most_running=2) as live:
        yield live


def fail(live: Live, path: str, body: Any, status: int = 400) -> dict[str, Any]:
    # Escaped, so that text which is no Unicode reaches the server.
    headers = {"content-type": "application/json"}
    reply = httpx.post(live.url + path, content=json.dumps(body), headers=headers, timeout=30)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def test_the_official_client_sees_its_own_errors(server: Live) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-9", messages=USER)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt="x" * 2000)
    assert long.value.code == "context_length_exceeded"
    assert "1023 tokens" in str(long.value)
    with pytest.raises(openai.BadRequestError) as negative:
        client.chat.completions.create(model="tiny", messages=USER, max_tokens=-1)
    assert negative.value.param == "max_tokens"


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"role": "nobody", "content": "hi"}]},
        {"messages": [{"role": "user", "content": {"text": "hi"}}]},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"temperature": -1},
        {"temperature": "warm"},
        {"top_p": 0},
        {"n": 0},
        {"n": 10_000},
        {"stop": ""},
        {"stop": ["a"] * 99},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"99999": 1}},
        {"stop_token_ids": [420]},
        {"top_logprobs": 5},
        {"frequency_penalty": 1.0},
        {"response_format": {"type": "json_object"}},
        {"tool_choice": "required"},
        {"tool_choice": "sometimes"},
        {"tool_choice": {"type": "function", "function": {"name": "absent"}}},
        {"tool_choice": {"type": "custom", "custom": {"name": "find"}}},
        {"tools": [{"type": "function"}]},
        {"chat_template_kwargs": {"enable_thinking": "yes"}},
        {"chat_template_kwargs": {"unknown": True}},
    ],
)
def test_bad_chats_are_refused(server: Live, fields: dict[str, Any]) -> None:
    fail(server, CHAT, {"messages": USER, **fields})


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": USER, "tool_choice": "sometimes"}, "tool_choice"),
        (CHAT, {"messages": USER, "stop": 5}, "stop"),
        (
            "/generate",
            {"input_ids": [1], "sampling_params": {"max_new_tokens": -5}},
            "sampling_params.max_new_tokens",
        ),
    ],
)
def test_a_refusal_names_the_field_as_the_client_wrote_it(
    server: Live, path: str, body: dict[str, Any], param: str
) -> None:
    assert fail(server, path, body)["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input_ids": []},
        {"input_ids": [[]]},
        {"input_ids": [420]},
        {"input_ids": [-1]},
        {"input_ids": [True]},
        {"input_ids": [1.5]},
        {"input_ids": [1], "text": "a"},
        {"input_ids": [1] * 5000},
        {"input_ids": [1], "sampling_params": {"max_new_tokens": -5}},
        {"input_ids": [1], "sampling_params": [{}, {}]},
        {"input_ids": [1], "return_logprob": True, "logprob_start_len": 2},
        {"input_ids": [[1], [2]], "rid": ["a"]},
        {"input_ids": [[1], [2]], "rid": ["a", "a"]},
        {"input_ids": [1], "sampling_params": {"top_p": 2}},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_generations_are_refused(server: Live, body: dict[str, Any], stream: bool) -> None:
    fail(server, "/generate", {**body, "stream": stream})
    server.wait_until_idle()


def test_bodies_that_are_no_json_are_refused(server: Live) -> None:
    headers = {"content-type": "application/json"}
    for content in (b"{", b"", b"\xff", b"[" * 100_000, b'{"messages": NaN}', b"[]", b"null"):
        reply = httpx.post(server.url + CHAT, content=content, headers=headers)
        assert reply.status_code == 400, content[:10]
        assert reply.json()["error"]["message"]
    infinite = b'{"messages": [{"role": "user", "content": "a"}], "temperature": Infinity}'
    assert httpx.post(server.url + CHAT, content=infinite, headers=headers).status_code == 400
    assert httpx.get(server.url + "/v1/nothing").json()["error"]["code"] == "not_found"
    assert httpx.get(server.url + CHAT).status_code == 405


def open_stream(live: Live, path: str, body: bytes) -> socket.socket:
    port = int(live.url.rsplit(":", 1)[1])
    connection = socket.create_connection(("127.0.0.1", port))
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return connection


@pytest.mark.parametrize("stream", [b"true", b"false"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, b'{"messages": [{"role": "user", "content": "a"}], "n": 3, '),
        ("/v1/completions", b'{"prompt": "a", "n": 3, '),
        ("/generate", b'{"input_ids": [1, 2, 3], '),
    ],
)
def test_a_client_that_leaves_frees_its_blocks(
    server: Live, path: str, body: bytes, stream: bytes
) -> None:
    aborted = server.served.engine.statistics.finished["abort"]
    options = b'"max_tokens": 900, "ignore_eos": true, "sampling_params": '
    options += b'{"max_new_tokens": 900, "ignore_eos": true}, "stream": ' + stream + b"}"
    connection = open_stream(server, path, body + options)
    while not server.load()["running_requests"]:
        time.sleep(0.001)
    if stream == b"true":
        assert connection.recv(20)
    connection.close()
    server.wait_until_idle()
    assert server.served.engine.statistics.finished["abort"] > aborted


def test_too_many_requests_are_told_so(server: Live) -> None:
    connections = []
    # The second comes when two of the first run: five and five at once are more than may wait.
    for waiting in (3, 8):
        connections.append(
            open_stream(server, "/generate", b'{"input_ids": [1], "sampling_params": {"n": 5, '
                        b'"max_new_tokens": 900, "ignore_eos": true}}')
        )  # fmt: skip
        while server.load()["waiting_requests"] != waiting:
            time.sleep(0.001)
    for stream in (False, True):
        body = {"input_ids": [[1], [2]], "stream": stream}
        assert fail(server, "/generate", body, 429)["code"] == "rate_limit_exceeded"
        body = {"messages": USER, "n": 2, "stream": stream}
        fail(server, CHAT, body, 429)
    for connection in connections:
        connection.close()
    server.wait_until_idle()


def test_a_dead_engine_is_not_healthy() -> None:
    with live_server(random_model()) as live:
        assert httpx.get(f"{live.url}/health").status_code == 200
        live.served.worker.close()
        assert httpx.get(f"{live.url}/health").status_code == 503
        assert httpx.get(f"{live.url}/metrics").status_code == 503
        fail(live, "/generate", {"input_ids": [1]}, 503)


def test_a_taken_port_is_a_users_mistake() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            listen("127.0.0.1", port)
    for host, port in (("127.0.0.1", 70_000), ("256.1.1.1", 80)):
        with pytest.raises(ConfigError):
            listen(host, port)
