"""A prompt that stands once for its group: fewer places, the same numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tabular import make_sample

from fivefold.models.initialise import initialise
from fivefold.models.moe import MoE
from fivefold.models.preset import preset as shape
from fivefold.models.transformer import Transformer
from fivefold.ops.chunked_cross_entropy import IGNORED
from fivefold.rl import preset
from fivefold.rl.algorithm import make_token_loss
from fivefold.rl.config import AlgorithmConfig
from fivefold.rl.forward import PolicyForward
from fivefold.rl.pack import pack_samples
from fivefold.rl.reduction import count_totals
from fivefold.rl.rollout import Rollout
from fivefold.rl.sample import Sample

WORDS = 32


def make_group(name: str, prompt: int, responses: list[int], seed: int = 0) -> list[Sample]:
    """Make samples that begin with the same `prompt` tokens."""
    rng = np.random.default_rng(seed)
    begin = rng.integers(0, WORDS, prompt)
    return [
        make_sample(
            100 * seed + number,
            prompt + tokens,
            prompt=prompt,
            group=name,
            ids=np.concatenate([begin, rng.integers(0, WORDS, tokens)]),
        )
        for number, tokens in enumerate(responses)
    ]


def make_groups() -> list[Sample]:
    return [
        *make_group("a", 7, [3, 5, 2, 4], seed=1),
        *make_group("b", 1, [4, 6], seed=2),
        *make_group("c", 4, [5], seed=3),
        *make_group("d", 9, [1, 1, 2], seed=4),
    ]


def tiny_model() -> Transformer:
    config = shape("nano", num_hidden_layers=2, vocab_size=WORDS, index_topk=4)
    model = Transformer(config)
    initialise(model, config, torch.Generator().manual_seed(0))
    return model.double().eval()


def forward_of(model: Transformer) -> PolicyForward:
    return PolicyForward(model, temperature=1.0, chunk_tokens=4)


@pytest.mark.parametrize("row", [16, 32, 64])
def test_log_probabilities_are_those_of_samples_packed_whole(row: int) -> None:
    model, samples = tiny_model(), make_groups()
    forward = forward_of(model)
    found: dict[bool, dict[int, np.ndarray]] = {}
    for shares in (False, True):
        packs = pack_samples(samples, row, 2, shares_prompts=shares, dtype=torch.float64)
        assert any(pack.prompts for pack in packs) == shares
        values: dict[int, np.ndarray] = {}
        for pack in packs:
            values |= pack.unpack(forward.logprobs(pack, samples))
        found[shares] = values
    assert found[True].keys() == found[False].keys()
    for member, alone in found[False].items():
        np.testing.assert_allclose(found[True][member], alone, atol=1e-12)
        assert (alone[samples[member].loss_mask] < 0).all()


def with_routing(samples: list[Sample], layers: int, experts: int, chosen: int) -> list[Sample]:
    """Record experts for every token; those of a prompt are the same in its group."""
    rollouts = list[Sample]()
    for sample in samples:
        prompt = int(np.flatnonzero(sample.loss_mask)[0])
        parts = []
        for seed, tokens in ((len(sample.group), prompt), (int(sample.ids.sum()), 0)):
            rng = np.random.default_rng([ord(sample.group[0]), seed])
            count = tokens or len(sample.ids) - prompt
            ranks = rng.random((count, layers, experts)).argsort(-1)
            parts.append(ranks[..., :chosen].astype(np.int16))
        rollouts.append(Rollout(**vars(sample), routing=np.concatenate(parts)))
    return rollouts


@pytest.mark.parametrize("replays", [False, True], ids=["routed", "replayed"])
@pytest.mark.parametrize(
    "config",
    [preset.grpo(4), preset.gspo(4), preset.dapo(), preset.dr_grpo(9)],
    ids=["grpo", "gspo", "dapo", "dr_grpo"],
)
def test_gradient_is_that_of_samples_packed_whole(config: AlgorithmConfig, replays: bool) -> None:
    model, samples = tiny_model(), make_groups()
    layers = sum(isinstance(module, MoE) for module in model.layers.modules())
    shaped = model.config
    samples = with_routing(samples, layers, shaped.n_routed_experts, shaped.num_experts_per_tok)
    forward = PolicyForward(model, temperature=1.0, chunk_tokens=4, replays_routing=replays)
    gradients = []
    for shares in (False, True):
        model.zero_grad()
        for pack in pack_samples(samples, 40, 1, shares_prompts=shares, dtype=torch.float64):
            share, routing = forward.loss(
                pack, samples, make_token_loss(config), count_totals(samples), config.reduction
            )
            share.total.backward()
            real = sum(length for _, length in pack.spans)
            assert all(len(layer.chosen_TA) == real for layer in routing)
        parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        gradients.append(torch.cat(parts))
    whole, shared = gradients
    assert whole.abs().max() > 1e-4
    torch.testing.assert_close(shared, whole, atol=1e-13, rtol=1e-9)


def test_wider_rows_count_a_prompt_fewer_times_for_routers() -> None:
    """What the balance of experts counts does depend on the width, as `pack` says."""
    model, samples = tiny_model(), make_group("a", 9, [2, 2, 2, 2])
    config, counted = preset.grpo(4), list[int]()
    for width in (12, 14, 16, 64):
        places = 0
        for pack in pack_samples(samples, width, 1, shares_prompts=True, dtype=torch.float64):
            _, routing = forward_of(model).loss(
                pack, samples, make_token_loss(config), count_totals(samples), config.reduction
            )
            places += len(routing[0].chosen_TA)
        counted.append(places)
    # Eight places a row that the samples share, and two of each sample; a sample alone has ten.
    assert counted == [2 * 8 + 8, 8 + 6 + 10, 8 + 8, 8 + 8]


def test_another_prompt_in_the_group_changes_nothing_for_the_others() -> None:
    """The prefix ends where the samples begin to differ, and no label is lost."""
    model, samples = tiny_model(), make_group("a", 8, [4, 4, 4])
    samples[2].ids[3] = (samples[2].ids[3] + 1) % WORDS
    (shared,) = pack_samples(samples, 64, 1, shares_prompts=True, dtype=torch.float64)
    assert [prompt.length for prompt in shared.prompts] == [3]
    alone = pack_samples(samples, 64, 9, dtype=torch.float64)
    forward = forward_of(model)
    values = shared.unpack(forward.logprobs(shared, samples))
    expected: dict[int, np.ndarray] = {}
    for pack in alone:
        expected |= pack.unpack(forward.logprobs(pack, samples))
    for member in range(3):
        np.testing.assert_allclose(values[member], expected[member], atol=1e-12)


def test_eight_short_responses_to_a_long_prompt_take_few_places() -> None:
    samples = make_group("a", 41, [5] * 8)
    (whole,) = pack_samples(samples, 128, 4)
    (shared,) = pack_samples(samples, 128, 4, shares_prompts=True)
    assert whole.ids_BT.numel() == 8 * 45
    assert shared.ids_BT.numel() == 40 + 8 * 5


def test_a_sample_alone_and_a_prompt_of_one_token_share_nothing() -> None:
    samples = [*make_group("a", 6, [3]), *make_group("b", 1, [4, 4], seed=1)]
    packs = pack_samples(samples, 64, 4, shares_prompts=True)
    assert all(pack.prefixes_BT is None and not pack.prompts for pack in packs)


def test_rows_longer_than_a_mask_share_nothing() -> None:
    samples = make_group("a", 2100, [3, 3])
    packs = pack_samples(samples, 4300, 1, shares_prompts=True)
    assert not any(pack.prompts for pack in packs)


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=5)),
        min_size=1,
        max_size=4,
    ),
    st.integers(16, 48),
    st.integers(1, 3),
)
def test_packing_and_back_keeps_every_label(
    groups: list[tuple[int, list[int]]], row: int, rows: int
) -> None:
    samples = [
        sample
        for seed, (prompt, responses) in enumerate(groups)
        for sample in make_group(f"g{seed}", prompt, responses, seed)
    ]
    seen = []
    for packed in pack_samples(samples, row, rows, shares_prompts=True, dtype=torch.float64):
        width = packed.ids_BT.shape[1]
        assert packed.ids_BT.numel() <= rows * row
        assert width <= row
        flat = {name: getattr(packed, f"{name}_BT").flatten() for name in ("ids", "positions")}
        labels = packed.labels_BT.flatten()
        advantages = packed.unpack(packed.streams.advantages_N)
        documents, prefixes = packed.documents_BT, packed.prefixes_BT
        for member, begin, length, skip in zip(
            packed.members, packed.begins, packed.lengths, packed.skipped, strict=True
        ):
            sample = samples[member]
            seen.append(member)
            sees = torch.arange(begin, begin + length)
            if documents is not None:
                at = begin % width
                line = documents[begin // width]
                wanted = {int(line[at])}
                if prefixes is not None:
                    wanted.add(int(prefixes[begin // width, at]))
                places = [p for p in range(width) if int(line[p]) in wanted]
                sees = torch.tensor(places) + begin // width * width
            # What a sample's last place sees, in order, is the sample.
            np.testing.assert_array_equal(flat["ids"][sees], sample.ids[:-1])
            np.testing.assert_array_equal(flat["positions"][sees], np.arange(len(sees)))
            assert skip + length == len(sample.ids) - 1
            trained = sample.loss_mask[1:][skip:]
            assert sample.loss_mask[: skip + 1].sum() == 0
            own = labels[begin : begin + length].numpy()
            np.testing.assert_array_equal(own[trained], sample.ids[1:][skip:][trained])
            assert (own[~trained] == IGNORED).all()
            np.testing.assert_array_equal(advantages[member], sample.advantages)
    assert sorted(seen) == list(range(len(samples)))
