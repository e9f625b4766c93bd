"""Samples refuse nonsense, and packing loses and mixes nothing."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tabular import make_batch, make_sample

from fivefold.errors import MismatchError
from fivefold.ops.chunked_cross_entropy import IGNORED
from fivefold.rl.pack import pack_samples
from fivefold.rl.sample import SampleError, check_synchronous, group_samples


def broken(stream: str, place: int, value: float) -> None:
    sample = make_sample()
    values = np.array(getattr(sample, stream) if stream != "weights" else np.ones(6))
    values[place] = value
    dataclasses.replace(sample, **{stream: values})


@pytest.mark.parametrize(
    "stream", ["rollout_logprobs", "teacher_logprobs", "advantages", "weights"]
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_value_is_refused_where_the_token_trains_alone(
    stream: str, value: float
) -> None:
    with pytest.raises(SampleError, match=f"`{stream}`.* at token 4 and 0 more"):
        broken(stream, 4, value)
    broken(stream, 0, value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"versions": np.full(5, 3)}, "versions 5"),
        ({"advantages": np.zeros(7)}, "advantages 7"),
        ({"reward": float("nan")}, "verifier failed"),
        ({"copies": 0}, "at least 1"),
        ({"versions": np.full(6, -1)}, "no policy sampled"),
        ({"rollout_logprobs": np.full(6, 0.5)}, "at most 0"),
        ({"loss_mask": np.ones(6, dtype=bool), "versions": np.zeros(6)}, "first token"),
    ],
)
def test_malformed_sample_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        make_sample(**changes)


def test_sample_of_one_token_is_refused() -> None:
    with pytest.raises(SampleError, match="at least 2 tokens"):
        make_sample(tokens=1, prompt=1)


def test_mixed_versions_are_refused_in_a_synchronous_stage_and_prompts_have_none() -> None:
    sample = make_sample()
    check_synchronous([sample], 3)
    with pytest.raises(MismatchError, match=r"versions \[3\]"):
        check_synchronous([sample], 4)
    mixed = sample.versions.copy()
    mixed[-1] = 4
    with pytest.raises(MismatchError, match=r"versions \[3, 4\]"):
        check_synchronous([sample, dataclasses.replace(sample, versions=mixed)], 3)


def test_groups_go_by_name_whatever_the_order() -> None:
    names = ["a", "b", "a", "c", "b", "a"]
    samples = [make_sample(n, group=name) for n, name in enumerate(names)]
    groups = group_samples(samples, 3, names=["a", "lost"])
    assert [group.name for group in groups] == ["a", "lost", "b", "c"]
    assert [len(group.samples) for group in groups] == [3, 0, 2, 1]
    assert groups[2].samples == (samples[1], samples[4])
    with pytest.raises(SampleError, match="at most 2 samples in group `a`"):
        group_samples(samples, 2)


@given(
    st.lists(st.integers(2, 9), min_size=1, max_size=12),
    st.integers(8, 20),
    st.integers(1, 4),
)
def test_packing_and_back_keeps_every_stream(lengths: list[int], row: int, rows: int) -> None:
    samples = [make_sample(n, length, prompt=1) for n, length in enumerate(lengths)]
    seen = []
    for packed in pack_samples(samples, row, rows, dtype=torch.float64):
        assert packed.ids_BT.numel() <= rows * row
        assert packed.ids_BT.shape[1] <= row
        advantages = packed.unpack(packed.streams.advantages_N)
        rollout = packed.unpack(packed.streams.rollout_logprobs_N)
        teacher = packed.streams.teacher_logprobs_N
        assert teacher is not None
        for number, member in enumerate(packed.members):
            sample = samples[member]
            seen.append(member)
            begin, end = packed.begins[number], packed.begins[number] + packed.lengths[number]
            np.testing.assert_array_equal(packed.ids_BT.flatten()[begin:end], sample.ids[:-1])
            np.testing.assert_array_equal(packed.labels_BT.flatten()[begin:end], sample.ids[1:])
            np.testing.assert_array_equal(
                packed.positions_BT.flatten()[begin:end], np.arange(end - begin)
            )
            assert (packed.streams.sequence_N[begin:end] == number).all()
            np.testing.assert_array_equal(advantages[member], sample.advantages)
            np.testing.assert_array_equal(rollout[member][1:], sample.rollout_logprobs[1:])
            if packed.documents_BT is not None:
                documents = packed.documents_BT[begin // packed.ids_BT.shape[1]]
                first = begin % packed.ids_BT.shape[1]
                places = (documents == documents[first]).nonzero().squeeze(1)
                assert places.tolist() == list(range(first, first + end - begin))
        assert int(packed.streams.mask_N.sum()) == sum(packed.lengths)
    assert sorted(seen) == list(range(len(samples)))


def test_rows_are_as_narrow_as_padding_allows() -> None:
    equal = [make_sample(n, 8, prompt=1) for n in range(6)]
    (packed,) = pack_samples(equal, 100, 4)
    assert packed.ids_BT.shape == (6, 7)
    assert packed.documents_BT is None
    # Four rows of 9 would hold one sample each; two rows of 15 hold two.
    uneven = [make_sample(n, length, prompt=1) for n, length in enumerate([10, 7, 7, 7])]
    (packed,) = pack_samples(uneven, 20, 4)
    assert packed.ids_BT.shape == (2, 15)


def test_boundaries_separate_samples_rows_and_padding() -> None:
    samples = [make_sample(n, length, prompt=1) for n, length in enumerate([7, 4, 3])]
    (packed,) = pack_samples(samples, 6, 4)
    assert packed.cu_seqlens.tolist() == [0, 6, 9, 11, 12]
    assert packed.cu_seqlens.dtype == torch.int32
    assert packed.documents_BT is not None
    assert packed.documents_BT.tolist() == [[0] * 6, [0, 0, 0, 1, 1, -1]]


def test_what_does_not_train_has_zeros_and_no_label() -> None:
    (packed,) = pack_samples([make_sample(hole=4)], 8, 1)
    assert packed.streams.mask_N.tolist() == [False, True, True, False, True]
    assert packed.documents_BT is None
    assert (packed.labels_BT.flatten() == IGNORED).tolist() == [True, False, False, True, False]
    masked = ~packed.streams.mask_N
    for name in ("advantages_N", "weights_N", "rollout_logprobs_N", "teacher_logprobs_N"):
        values = getattr(packed.streams, name)
        assert (values[masked] == 0).all(), name
        assert (values[~masked] != 0).all(), name


def test_recorded_log_probabilities_of_single_precision_survive_bitwise() -> None:
    rollout = make_sample().rollout_logprobs.astype(np.float32)
    (packed,) = pack_samples([make_sample(rollout_logprobs=rollout)], 8, 1)
    assert (
        packed.unpack(packed.streams.rollout_logprobs_N)[0][2:].tobytes() == rollout[2:].tobytes()
    )


def test_teacher_of_some_samples_only_is_no_stream() -> None:
    samples = [make_sample(), make_sample(1, teacher_logprobs=None)]
    (packed,) = pack_samples(samples, 8, 2)
    assert packed.streams.teacher_logprobs_N is None


def test_sample_that_does_not_fit_or_has_no_advantages_is_refused() -> None:
    with pytest.raises(SampleError, match="at most 5 tokens"):
        pack_samples([make_sample()], 4, 1)
    with pytest.raises(SampleError, match="assign_advantages"):
        pack_samples([make_sample(advantages=None)], 8, 1)


def test_sample_of_which_nothing_trains_takes_no_place() -> None:
    silent = make_sample(loss_mask=np.zeros(6, dtype=bool))
    (packed,) = pack_samples([silent, *make_batch(2)], 16, 4)
    assert sorted(packed.members) == [1, 2]
    assert pack_samples([silent], 16, 4) == []
