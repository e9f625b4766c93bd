"""Rollouts by URL: the synchronous loop over a live server is the loop over its own engine."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import torch
from live_server import Live, live_server
from toy import ToySource, context_of, run_toy, supply_of, toy_config, toy_model

from fivefold.errors import MismatchError
from fivefold.metrics import read_metrics
from fivefold.models.transformer import Transformer
from fivefold.rl.collect import Collector
from fivefold.rl.examine import Examiner
from fivefold.rl.learner import PolicyLearner
from fivefold.rl.loop import Players, resume, run_loop
from fivefold.rl.loop_config import EvaluationConfig, LoopConfig, RecordConfig
from fivefold.rl.progress import Progress
from fivefold.rl.prompt import Prompt, PromptStream
from fivefold.rl.reinforce import Supply
from fivefold.rl.rollout import Ask, EngineCompleter
from fivefold.rl.rollout_config import RolloutConfig
from fivefold.rl.sample import NOT_SAMPLED
from fivefold.rl.server_completer import ServerCompleter
from fivefold.rl.teacher import SCORING
from fivefold.serve.engine import Engine
from fivefold.serve.request import SamplingParams
from fivefold.text.completer import EndpointError, OverloadedError, RefusedError
from fivefold.text.endpoint import Endpoint
from fivefold.train.compute import ComputeModel
from fivefold.train.pretrain import freeze_indexers

DETERMINISTIC = toy_config().engine.model_copy(update={"deterministic": True})
CLOCKS = {"time_seconds", "rl/sample_seconds", "rl/train_seconds"}


@contextmanager
def served(seed: int = 9, **fields: Any) -> Iterator[Live]:
    """Serve other weights than anybody trains."""
    settings = DETERMINISTIC.model_dump() | fields
    with live_server(toy_model(seed), **settings) as live:
        yield live


def config_of(batches: int = 4) -> LoopConfig:
    return toy_config(
        batches,
        engine=DETERMINISTIC,
        evaluation=EvaluationConfig(prompts=2, every_batches=2),
        record=RecordConfig(checkpoint_batches=2),
    )


def run_at(
    url: str,
    directory: Path,
    config: LoopConfig,
    found: Supply,
    push: Literal["tensor", "disk"] = "tensor",
) -> tuple[Transformer, Progress]:
    """As `run_toy`, with rollouts from a server."""
    model, context = toy_model(), context_of(directory)
    freeze_indexers(model)
    assert model.mtp is not None
    model.mtp.requires_grad_(False)
    learner = PolicyLearner(model, ComputeModel(model, torch.float32), config)
    progress = resume(learner, directory / "state" / "training")

    async def run() -> Progress:
        place = RolloutConfig(url=url, push=push, retry_seconds=0.01)
        async with ServerCompleter(place, learner.compute.model, directory) as completer:
            stream = PromptStream(found.sources, found.weights)
            collector = Collector(completer, stream, config, context.seed)
            examiner = Examiner(completer, found.heldout, config, context.seed)
            players = Players(learner, completer, collector, examiner, found.decode)
            return await run_loop(players, config, context, directory, progress)

    return model, asyncio.run(run())


def records(directory: Path) -> list[dict]:
    found = read_metrics(directory / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k not in CLOCKS} for record in found]


@pytest.mark.parametrize("push", ["tensor", "disk"])
def test_loop_over_a_server_is_the_loop_over_the_engine(
    push: Literal["tensor", "disk"], tmp_path: Path
) -> None:
    """Bit for bit, from a server that begins with other weights and a count of its own."""
    supply = supply_of(ToySource(), heldout=2)
    whole, expected = run_toy(tmp_path / "engine", config_of(), supply)
    with served() as live:
        push_from_elsewhere(live, 41)
        first, _ = run_at(live.url, tmp_path / "server", config_of(2), supply, push)
        resumed, progress = run_at(live.url, tmp_path / "server", config_of(), supply, push)
        live.wait_until_idle()
    assert progress == expected
    ours, theirs = resumed.state_dict(), whole.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(first.lm_head.weight, resumed.lm_head.weight)
    mine = [r for r in records(tmp_path / "server") if "rl/loss" in r]
    assert mine == [r for r in records(tmp_path / "engine") if "rl/loss" in r]
    assert [r["rl/rho_exact_fraction"] for r in mine] == [1.0] * 4
    assert [r["rl/policy_version"] for r in mine] == [1, 2, 3, 4]


def test_config_alone_moves_the_rollouts_to_a_server(tmp_path: Path) -> None:
    whole, expected = run_toy(tmp_path / "engine", config_of(2))
    with served() as live:
        place = RolloutConfig(url=live.url, push="disk")
        config = config_of(2).model_copy(update={"rollout": place})
        found, progress = run_toy(tmp_path / "server", config)
        assert live.served.engine.version == 3
    assert progress == expected
    assert torch.equal(found.lm_head.weight, whole.lm_head.weight)
    assert (tmp_path / "server" / "state" / "pushed" / "model.safetensors").is_file()


def test_weights_of_somebody_else_are_refused(tmp_path: Path) -> None:
    """A push from elsewhere within the second batch: its tokens do not train."""
    with served() as live:

        class Intruder(ToySource):
            def prompt(self, index: int) -> Prompt:
                if index == 6:
                    push_from_elsewhere(live, 90)
                return super().prompt(index)

        with pytest.raises(MismatchError, match=r"policy version 1 alone.*versions \[8"):
            run_at(live.url, tmp_path, config_of(), supply_of(Intruder()))
    assert [r["rl/policy_version"] for r in records(tmp_path) if "rl/loss" in r] == [1]


def push_from_elsewhere(live: Live, version: int) -> None:
    """Count the served weights up, from another thread as another process would."""
    update = live.served.worker.call(lambda engine: engine.update_weights(None, version))
    thread = threading.Thread(target=asyncio.run, args=(update,))
    thread.start()
    thread.join()


async def completer_at(url: str, **fields: Any) -> ServerCompleter:
    return ServerCompleter(RolloutConfig(url=url, retry_seconds=0, **fields), toy_model(), Path())


def test_completions_and_scores_equal_the_engine_s() -> None:
    asks = [
        Ask((3, 1), SamplingParams(max_new_tokens=4, seed=5, returns_routing=True)),
        Ask((4, 1), SamplingParams(max_new_tokens=3, temperature=0)),
        Ask((4, 1), SamplingParams(max_new_tokens=3, temperature=0.5, seed=6)),
        Ask((4, 1, 7, 7), SCORING),
    ]
    own = EngineCompleter(Engine(toy_model(), DETERMINISTIC))
    expected = asyncio.run(own.complete(asks))

    async def run(url: str) -> list[Any]:
        async with await completer_at(url, concurrency=2) as completer:
            assert await completer.version() == NOT_SAMPLED
            with pytest.raises(MismatchError, match="has not given its weights"):
                await completer.complete(asks[:1])
            await completer.push(0)
            assert await completer.version() == 0
            return await completer.complete(asks)

    with served() as live:
        found = asyncio.run(run(live.url))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.ids == theirs.ids
        assert ours.finish == theirs.finish
        assert ours.versions == theirs.versions
        assert [s.sampled for s in ours.logprobs] == [s.sampled for s in theirs.logprobs]
        assert ours.prompt_logprobs == theirs.prompt_logprobs
    ours, theirs = found[0].routing, expected[0].routing
    assert theirs is not None
    assert torch.equal(ours, theirs[: len(ours)])
    assert len(ours) == 2 + len(found[0].ids)
    assert [s.raw for s in found[1].logprobs] == [s.raw for s in expected[1].logprobs]


def test_faults_that_may_pass_are_tried_again_and_counted() -> None:
    answers: list[Any] = [OverloadedError, EndpointError, "done"]

    async def run() -> int:
        async with await completer_at("http://127.0.0.1:9", retries=2) as completer:

            async def request() -> str:
                found = answers.pop(0)
                if found == "done":
                    return found
                raise found(expected="an answer", found="none", fix="Wait")

            assert await completer._retry(request) == "done"
            answers[:] = [EndpointError] * 3
            with pytest.raises(EndpointError):
                await completer._retry(request)
            answers[:] = [RefusedError, "done"]
            with pytest.raises(RefusedError):
                await completer._retry(request)
            return completer.retried

    assert asyncio.run(run()) == 4


@pytest.mark.parametrize("push", ["busy", "lost", "broken"])
def test_push_and_its_versions_survive_a_fault_that_passes(push: str) -> None:
    """A server that is busy for a moment, or whose answer to a push is lost, ends no run."""
    served, pushed, faults = "default", list[str](), [push]
    silent = iter([True, False, True, True] + [False] * 99)

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal served
        if request.url.path == "/get_weight_version":
            reply = httpx.Response(200, json={"weight_version": served})
            return httpx.Response(503) if next(silent) else reply
        asked = json.loads(request.content)["weight_version"]
        fault = faults.pop() if faults else ""
        if fault in ("busy", "broken"):
            return httpx.Response(503 if fault == "busy" else 500)
        if served.isdecimal() and int(asked) <= int(served):
            return httpx.Response(400, json={"message": "count upwards"})
        served = asked
        pushed.append(asked)
        return httpx.Response(500) if fault else httpx.Response(200, json={"success": True})

    async def run() -> tuple[int, int]:
        async with await completer_at("http://scripted", retries=3) as completer:
            wire = httpx.MockTransport(answer)
            completer._weights._endpoint = Endpoint("http://scripted", transport=wire)
            completer._weights._reader = httpx.AsyncClient(
                base_url="http://scripted", transport=wire
            )
            await completer.push(7)
            return await completer.version(), completer.retried

    assert asyncio.run(run()) == (7, 4)
    assert pushed == ["1"]


def test_server_that_is_not_there_is_named() -> None:
    async def run() -> None:
        async with await completer_at("http://127.0.0.1:9") as completer:
            await completer.push(0)

    with pytest.raises(EndpointError, match="get_weight_version"):
        asyncio.run(run())
    with pytest.raises(ValueError, match="url"):
        RolloutConfig(url="nowhere")


def test_weights_of_another_shape_are_refused_and_the_old_ones_serve() -> None:
    async def run(url: str) -> int:
        place = RolloutConfig(url=url)
        async with ServerCompleter(place, toy_model(hidden_size=32), Path()) as completer:
            with pytest.raises(RefusedError, match="old weights go on serving"):
                await completer.push(0)
            return await completer.version()

    with served() as live:
        assert asyncio.run(run(live.url)) == NOT_SAMPLED
        assert live.served.engine.version == 0
