"""Dumps: what is read back is what was written, and trains to the same gradients bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tabular import make_batch
from toy import ENGINE, ToySource, run_toy, supply_of, toy_config, toy_model

from fivefold.errors import CorruptFileError
from fivefold.metrics import read_metrics
from fivefold.models.transformer import Transformer
from fivefold.rl.dump import dumped_batches, read_dump, read_judged, write_dump
from fivefold.rl.learner import PolicyLearner, split_groups
from fivefold.rl.loop_config import LoopConfig, RecordConfig, SamplingConfig
from fivefold.rl.mismatch import Mismatch
from fivefold.rl.rollout import Rollout
from fivefold.rl.sample import Sample
from fivefold.train.compute import ComputeModel
from fivefold.train.pretrain import freeze_indexers

STREAMS = ("ids", "loss_mask", "rollout_logprobs", "versions", "teacher_logprobs", "weights")


def learner_of(model: Transformer, config: LoopConfig) -> PolicyLearner:
    freeze_indexers(model)
    if model.mtp is not None:
        model.mtp.requires_grad_(False)
    return PolicyLearner(model, ComputeModel(model, torch.float32), config)


def gradients(learner: PolicyLearner, samples: list[Sample]) -> list[torch.Tensor]:
    found: list[Mismatch] = []
    learner.accumulate(samples, learner.pack(samples), found)
    assert sum(mismatch.tokens for mismatch in found) == sum(s.loss_tokens for s in samples)
    return [p.grad.clone() for p in learner.model.parameters() if p.grad is not None]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_stream_comes_back_as_it_was(count: int, seed: int, tmp_path: Path) -> None:
    samples = make_batch(count, seed)
    write_dump(tmp_path, 3, samples, {"policy_version": 7}, kept=1)
    found, facts = read_dump(tmp_path / "batch_00000003.npz")
    assert facts == {"batch": 3, "policy_version": 7}
    assert len(found) == count
    for before, after in zip(samples, found, strict=True):
        for name in (*STREAMS, "advantages"):
            old, new = getattr(before, name), getattr(after, name)
            assert old.dtype == new.dtype
            np.testing.assert_array_equal(old, new)
        for name in ("group", "reward", "source", "copies", "is_truncated"):
            assert getattr(before, name) == getattr(after, name)


def test_streams_that_only_some_samples_have_stay_with_them(tmp_path: Path) -> None:
    routing = np.arange(24, dtype=np.int16).reshape(6, 2, 2)
    one, two = make_batch(2)
    fields = {n: getattr(one, n) for n in ("ids", "loss_mask", "rollout_logprobs", "versions")}
    cut = {name: value[:6] for name, value in fields.items()}
    routed = Rollout(**cut, group="r", reward=None, routing=routing, prompt_tokens=2)
    write_dump(tmp_path, 1, [two, routed], {}, kept=1)
    found, _ = read_dump(tmp_path / "batch_00000001.npz")
    assert isinstance(found[0], Rollout)
    assert isinstance(found[1], Rollout)
    assert found[0].routing is None
    np.testing.assert_array_equal(found[1].routing, routing)
    assert found[1].reward is None
    assert found[1].teacher_logprobs is None
    assert found[1].prompt_tokens == 2


@pytest.mark.parametrize("mode", ["fast", "deterministic", "replay"])
def test_replayed_dump_gives_the_gradients_of_its_batch(mode: str, tmp_path: Path) -> None:
    config = toy_config(1)
    if mode == "deterministic":
        engine = ENGINE.model_copy(update={"deterministic": True})
        config = config.model_copy(update={"engine": engine})
    if mode == "replay":
        sampling = config.sampling.model_copy(update={"replays_routing": True})
        config = config.model_copy(update={"sampling": sampling})
    trained, _ = run_toy(tmp_path, config)
    samples, facts = read_dump(tmp_path / "state" / "rollouts" / "batch_00000001.npz")
    assert facts == {"batch": 1, "policy_version": 0, "updates_before": 0}
    learner = learner_of(toy_model(), config)
    once = gradients(learner, samples)
    assert all(torch.equal(a, b) for a, b in zip(once, gradients(learner, samples), strict=True))
    # The whole update from the dump is the update that the run made.
    updates, _ = learner.train(samples, facts["updates_before"])
    assert not updates[0].is_skipped
    ours, theirs = learner.model.state_dict(), trained.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_replayed_routing_makes_a_learner_of_another_router_take_the_engine_s_experts(
    tmp_path: Path,
) -> None:
    config = toy_config(1)
    replaying = config.model_copy(
        update={"sampling": config.sampling.model_copy(update={"replays_routing": True})}
    )
    run_toy(tmp_path, replaying)
    samples, _ = read_dump(tmp_path / "state" / "rollouts" / "batch_00000001.npz")
    model = toy_model()
    for name, buffer in model.named_buffers():
        if name == "layers.1.mlp.gate.e_score_correction_bias":
            buffer.copy_(torch.tensor([9.0, 0.0, 0.0, 8.0]))
    largest = {}
    for name, choice in (("replayed", replaying), ("own", config)):
        learner, found = learner_of(model, choice), list[Mismatch]()
        learner.accumulate(samples, learner.pack(samples), found)
        largest[name] = max(mismatch.largest_log_rho for mismatch in found)
    assert largest["replayed"] < 1e-5
    assert largest["own"] > 1e-3


def test_run_leaves_the_rewards_of_groups_that_did_not_train(tmp_path: Path) -> None:
    """Word 7 is all that is wanted, so that few groups have a signal; each is in the table."""
    source = ToySource(lambda ids: float(ids[0] == 7))
    config = toy_config(3, sampling=SamplingConfig(batch_prompts=4, max_new_tokens=2))
    run_toy(tmp_path, config, supply_of(source))
    dumps = tmp_path / "state" / "rollouts"
    assert dumped_batches(dumps) == [1, 2, 3]
    judged = [j for n in (1, 2, 3) for j in read_judged(dumps / f"batch_{n:08d}.npz")]
    trained = [s for n in (1, 2, 3) for s in read_dump(dumps / f"batch_{n:08d}.npz")[0]]
    drawn = sum(r.get("rl/groups_drawn", 0) for r in read_metrics(tmp_path / "metrics.jsonl"))
    assert len(judged) == 4 * drawn > len(trained)
    assert {j.group for j in judged} > {sample.group for sample in trained}


def test_only_the_newest_dumps_are_kept(tmp_path: Path) -> None:
    config = toy_config(5, record=RecordConfig(dumps_kept=2))
    run_toy(tmp_path / "some", config)
    assert dumped_batches(tmp_path / "some" / "state" / "rollouts") == [4, 5]
    run_toy(tmp_path / "none", toy_config(2, record=RecordConfig(dumps_kept=0)))
    assert dumped_batches(tmp_path / "none" / "state" / "rollouts") == []
    run_toy(tmp_path / "rare", toy_config(5, record=RecordConfig(dump_batches=2)))
    assert dumped_batches(tmp_path / "rare" / "state" / "rollouts") == [2, 4]


def test_damaged_dump_is_refused(tmp_path: Path) -> None:
    write_dump(tmp_path, 1, make_batch(3), {}, kept=1)
    path = tmp_path / "batch_00000001.npz"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"{}"):
        path.write_bytes(content)
        with pytest.raises(CorruptFileError, match="a whole rollout dump"):
            read_dump(path)
    with pytest.raises(CorruptFileError, match="FileNotFoundError"):
        read_dump(tmp_path / "batch_00000002.npz")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 6))
def test_updates_share_a_batch_by_whole_groups(groups: list[int], count: int) -> None:
    batch = make_batch(len(groups))
    samples = [
        Sample(s.ids, s.loss_mask, s.rollout_logprobs, s.versions, group=f"g{g}", reward=0.0)
        for s, g in zip(batch, groups, strict=True)
    ]
    parts = split_groups(samples, count)
    assert sorted(id(s) for part in parts for s in part) == sorted(id(s) for s in samples)
    names = [{s.group for s in part} for part in parts]
    assert sum(len(part) for part in names) == len(set(groups))
    assert len(parts) == min(count, len(set(groups)))
    sizes = [len(part) for part in names]
    assert max(sizes) - min(sizes) <= 1
