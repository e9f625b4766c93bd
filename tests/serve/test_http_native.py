"""/generate and the routes that steer an engine, in SGLang's shapes."""

import base64
import copy
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from live_server import Live, byte_tokenizer, chain_model, live_server, random_model
from safetensors.torch import save
from tiny_engine import expected_logprobs, naive_greedy, prompt_of

from fivefold.models.convert import released_tensors, write_checkpoint
from fivefold.models.transformer import Transformer
from fivefold.serve.request import SamplingParams
from fivefold.serve.sampler import log_distribution

PROMPT = prompt_of(20, vocab_size=256)


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live_server(copy.deepcopy(random_model())) as live:
        yield live


@pytest.fixture
def pushed() -> Iterator[Live]:
    """A server whose weights a test replaces."""
    with live_server(copy.deepcopy(random_model())) as live:
        yield live


def post(live: Live, path: str, body: Any, status: int = 200) -> Any:
    reply = httpx.post(live.url + path, json=body, timeout=60)
    assert reply.status_code == status, reply.text
    is_json = reply.headers["content-type"].startswith("application/json")
    return reply.json() if is_json else reply.text


def generate(live: Live, **fields: Any) -> Any:
    sampling = {"max_new_tokens": 6, "temperature": 0, **fields.pop("sampling_params", {})}
    return post(live, "/generate", {"input_ids": PROMPT, "sampling_params": sampling, **fields})


def test_greedy_ids_are_those_of_the_naive_loop(server: Live) -> None:
    answer = generate(server)
    assert answer["output_ids"] == naive_greedy(random_model(), PROMPT, 6)
    meta = answer["meta_info"]
    assert meta["finish_reason"] == {"type": "length", "length": 6}
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (20, 6)
    assert answer["text"] == byte_tokenizer().decode(answer["output_ids"], skip_special=True)


def test_scores_are_the_models_own(server: Live) -> None:
    answer = generate(
        server, sampling_params={"max_new_tokens": 0}, return_logprob=True, logprob_start_len=0
    )
    scored = answer["meta_info"]["input_token_logprobs"]
    assert [token for _, token, _ in scored] == PROMPT
    assert scored[0][0] is None
    found = torch.tensor([score for score, _, _ in scored[1:]])
    expected = expected_logprobs(random_model(), PROMPT)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert answer["output_ids"] == []
    later = generate(
        server, sampling_params={"max_new_tokens": 0}, return_logprob=True, logprob_start_len=15
    )
    assert [token for _, token, _ in later["meta_info"]["input_token_logprobs"]] == PROMPT[15:]


def test_output_logprobs_are_of_the_distribution_drawn_from(server: Live) -> None:
    params = SamplingParams(temperature=0.7, top_k=5, top_p=0.9)
    answer = generate(
        server,
        sampling_params={"temperature": 0.7, "top_k": 5, "top_p": 0.9, "sampling_seed": 4},
        return_logprob=True,
        top_logprobs_num=3,
    )
    scored = answer["meta_info"]["output_token_logprobs"]
    tokens = [*PROMPT, *answer["output_ids"]]
    with torch.no_grad():
        hidden = random_model()(torch.tensor([tokens])).hidden_BTD
        logits_MW = random_model().logits(hidden[0, len(PROMPT) - 1 : -1])
    log_p_MW = log_distribution(logits_MW, [params] * len(scored))
    for place, (score, token, _) in enumerate(scored):
        assert score == pytest.approx(float(log_p_MW[place, token]), abs=1e-4)
    assert all(len(top) == 3 for top in answer["meta_info"]["output_top_logprobs"])


def test_a_batch_is_many_requests(server: Live) -> None:
    rows = [prompt_of(9, seed, vocab_size=256) for seed in range(3)]
    answers = generate(server, input_ids=rows, rid=["a", "b", "c"])
    assert [answer["meta_info"]["id"] for answer in answers] == ["a", "b", "c"]
    for row, answer in zip(rows, answers, strict=True):
        assert answer["output_ids"] == naive_greedy(random_model(), row, 6)
    group = generate(server, sampling_params={"n": 3, "temperature": 1, "sampling_seed": 1})
    assert len({tuple(answer["output_ids"]) for answer in group}) == 3


def test_a_stream_repeats_what_it_has_and_ends_with_all(server: Live) -> None:
    body = {"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 6, "temperature": 0}}
    with httpx.stream("POST", f"{server.url}/generate", json={**body, "stream": True}) as reply:
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    whole = generate(server)
    for count, event in enumerate(events[:-1], start=1):
        assert event["output_ids"] == whole["output_ids"][:count]
        assert whole["text"].startswith(event["text"])
    assert events[-1]["output_ids"] == whole["output_ids"]
    assert events[-1]["meta_info"]["finish_reason"]["type"] == "length"


def test_stop_strings_and_ids_end_the_output() -> None:
    with live_server(chain_model([*"abcdefg"])) as live:
        letters = byte_tokenizer().encode("abcdefg")
        cases: list[tuple[dict[str, Any], str, Any]] = [
            ({"stop": "de"}, "bc", "de"),
            ({"stop": ["de"], "no_stop_trim": True}, "bcde", "de"),
            ({"stop_token_ids": [letters[3]]}, "bc", letters[3]),
        ]
        for sampling, text, matched in cases:
            answer = generate(live, input_ids=letters[:1], sampling_params=sampling)
            assert answer["text"] == text
            expected = {"type": "stop", "matched": matched}
            assert answer["meta_info"]["finish_reason"] == expected


def test_routed_experts_are_the_routers_choice(server: Live) -> None:
    post(server, "/flush_cache", {})
    answer = generate(server, return_routed_experts=True)
    meta = answer["meta_info"]
    raw = np.frombuffer(base64.b64decode(meta["routed_experts"]), np.int32)
    found = raw.reshape(meta["routed_experts_shape"])
    tokens = [*PROMPT, *answer["output_ids"]][:-1]
    with torch.no_grad():
        routing = random_model()(torch.tensor([tokens])).routing
    expected = torch.stack([routed.chosen_TA for routed in routing], 1).numpy()
    assert found.shape == expected.shape
    assert (np.sort(found, -1) == np.sort(expected, -1)).all()


def weights_of(model: Transformer) -> bytes:
    tensors = {name: tensor.contiguous().clone() for name, tensor in released_tensors(model)}
    return save(tensors)


def changed_model() -> Transformer:
    model = copy.deepcopy(random_model())
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        model.lm_head.weight.normal_(generator=generator)
    return model


def test_weights_from_tensors_serve_at_once(pushed: Live) -> None:
    other = changed_model()
    raw = weights_of(other)
    before = generate(pushed)
    encoded = base64.b64encode(raw).decode()
    body = {"serialized_named_tensors": [encoded], "weight_version": "7"}
    answer = post(pushed, "/update_weights_from_tensor", body)
    assert (answer["success"], answer["weight_version"]) == (True, "7")
    after = generate(pushed)
    assert after["output_ids"] == naive_greedy(other, PROMPT, 6) != before["output_ids"]
    assert after["meta_info"]["weight_version"] == "7"
    assert after["meta_info"]["weight_version_spans"] == [[0, 6, 7]]
    url = f"{pushed.url}/update_weights_from_tensor?weight_version=8"
    headers = {"content-type": "application/octet-stream"}
    assert httpx.post(url, content=weights_of(random_model()), headers=headers).is_success
    assert generate(pushed)["output_ids"] == before["output_ids"]


def test_weights_from_disk_serve_at_once(pushed: Live, tmp_path: Path) -> None:
    other = changed_model()
    write_checkpoint(other, tmp_path / "next")
    body = {"model_path": str(tmp_path / "next")}
    assert post(pushed, "/update_weights_from_disk", body)["success"]
    assert generate(pushed)["output_ids"] == naive_greedy(other, PROMPT, 6)
    assert post(pushed, "/get_weight_version", {}, 405)["error"]
    assert httpx.get(f"{pushed.url}/get_weight_version").json() == {"weight_version": "1"}


def broken_pushes() -> list[Any]:
    raw = weights_of(random_model())
    tensors = dict(released_tensors(random_model()))
    wrong = {**tensors, "lm_head.weight": torch.zeros(2, 2)}
    partial = {name: t for name, t in tensors.items() if name != "lm_head.weight"}
    as_save = [{n: t.contiguous().clone() for n, t in each.items()} for each in (wrong, partial)]
    encoded = [base64.b64encode(one).decode() for one in (raw[: len(raw) // 2], b"", raw)]
    return [
        {"serialized_named_tensors": [encoded[0]]},
        {"serialized_named_tensors": [encoded[1]]},
        {"serialized_named_tensors": ["no base64!"]},
        {"serialized_named_tensors": ["灯"]},
        {"serialized_named_tensors": []},
        {"serialized_named_tensors": [encoded[2]], "weight_version": 0},
        *({"serialized_named_tensors": [base64.b64encode(save(t)).decode()]} for t in as_save),
    ]


def test_broken_weights_change_nothing(pushed: Live, tmp_path: Path) -> None:
    before = generate(pushed)
    for body in broken_pushes():
        answer = post(pushed, "/update_weights_from_tensor", body, 400)
        assert not answer["success"]
        assert answer["error"]["message"]
    write_checkpoint(changed_model(), tmp_path / "half")
    file = tmp_path / "half" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    other = {"model_path": str(tmp_path / "half"), "abort_all_requests": True}
    for body in (other, {"model_path": "/nowhere"}):
        assert not post(pushed, "/update_weights_from_disk", body, 400)["success"]
    post(pushed, "/flush_cache", {})
    after = generate(pushed)
    assert after["output_ids"] == before["output_ids"]
    assert after["meta_info"]["weight_version"] == "0"


def test_a_checkpoint_of_another_selection_is_refused(pushed: Live, tmp_path: Path) -> None:
    other = copy.deepcopy(random_model())
    other.config = other.config.model_copy(update={"index_topk": 8})
    write_checkpoint(other, tmp_path / "other")
    body = {"model_path": str(tmp_path / "other")}
    answer = post(pushed, "/update_weights_from_disk", body, 400)
    assert "index_topk" in answer["error"]["message"]


@pytest.mark.parametrize("mode", ["abort", "in_place", "retract"])
def test_a_push_in_the_middle_of_a_rollout(pushed: Live, mode: str) -> None:
    answers: list[Any] = []
    body = {
        "input_ids": PROMPT,
        "sampling_params": {"max_new_tokens": 200, "ignore_eos": True},
        "rid": "rollout",
    }
    rollout = threading.Thread(target=lambda: answers.append(post(pushed, "/generate", body)))
    rollout.start()
    while not pushed.load()["running_requests"]:
        time.sleep(0.002)
    post(pushed, "/pause_generation", {"mode": mode})
    assert httpx.get(f"{pushed.url}/health_generate").status_code == 503
    assert httpx.get(f"{pushed.url}/health").status_code == 200
    raw = base64.b64encode(weights_of(changed_model())).decode()
    post(pushed, "/update_weights_from_tensor", {"serialized_named_tensors": [raw]})
    post(pushed, "/continue_generation", {})
    rollout.join(30)
    answer = answers[0]
    spans = answer["meta_info"]["weight_version_spans"]
    if mode == "abort":
        assert answer["meta_info"]["finish_reason"]["type"] == "abort"
        assert len(answer["output_ids"]) < 200
        assert [span[2] for span in spans] in ([], [0])
    else:
        assert [span[2] for span in spans] in ([0, 1], [1])
        assert spans[-1][1] == len(answer["output_ids"]) == 200
    pushed.wait_until_idle()


def test_abort_request_ends_one_or_all(server: Live) -> None:
    answers: list[Any] = []

    def start(rid: str) -> threading.Thread:
        sampling = {"max_new_tokens": 900, "ignore_eos": True}
        body = {"input_ids": PROMPT, "sampling_params": sampling, "rid": rid}
        thread = threading.Thread(target=lambda: answers.append(post(server, "/generate", body)))
        thread.start()
        return thread

    threads = [start(rid) for rid in ("one", "two", "three")]
    while server.load()["running_requests"] < 3:
        time.sleep(0.002)
    assert post(server, "/flush_cache", {}, 400).startswith("Not flushed")
    assert post(server, "/abort_request", {"rid": "two"}) == {"aborted": 1}
    assert post(server, "/abort_request", {"rid": "unknown"}) == {"aborted": 0}
    assert post(server, "/abort_request", {"abort_all": True})["aborted"] == 2
    for thread in threads:
        thread.join(30)
    assert {a["meta_info"]["finish_reason"]["type"] for a in answers} == {"abort"}
    server.wait_until_idle()


def test_state_routes_tell_the_truth(server: Live) -> None:
    generate(server)
    get = {p: httpx.get(f"{server.url}/{p}") for p in ("get_load", "get_model_info", "metrics")}
    assert get["get_load"].json()[0] == {
        "dp_rank": 0,
        "num_reqs": 0,
        "num_waiting_reqs": 0,
        "num_tokens": 0,
    }
    assert get["get_model_info"].json()["served_model_name"] == "tiny"
    assert httpx.get(f"{server.url}/health_generate").json() == {"status": "ok"}
    values = {}
    for line in get["metrics"].text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            values[name] = float(value)
    assert get["metrics"].headers["content-type"].startswith("text/plain; version=0.0.4")
    assert values["fivefold_requests_running"] == 0
    assert values["fivefold_output_tokens_total"] >= 6
    buckets = [v for n, v in values.items() if n.startswith("fivefold_request_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == values["fivefold_request_seconds_count"] > 0
