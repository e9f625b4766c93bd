"""Cuts of the chain against a count of pieces; MTP placement, norms, streams."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import TINY

from fivefold.errors import ConfigError
from fivefold.models.config import FivefoldFields
from fivefold.models.preset import preset
from fivefold.parallel.pipeline.placement import Placement
from fivefold.parallel.pipeline.split import (
    chain_length,
    cut_by_counts,
    cut_by_work,
    stage_parts,
)
from fivefold.plan.chain import model_pieces
from fivefold.plan.config import Precision, TrainingRun
from fivefold.plan.hardware import find_hardware
from fivefold.plan.layout import Layout
from fivefold.plan.schedule import v_placement

DEEP = preset("nano", num_hidden_layers=7)
DRAFTLESS = preset("nano", num_hidden_layers=7, num_nextn_predict_layers=0)


@given(st.data(), st.sampled_from([DEEP, DRAFTLESS]))
def test_every_piece_is_in_one_stage(data: st.DataObject, config) -> None:
    length = chain_length(config)
    borders = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=length - 1)))
    counts = [b - a for a, b in zip([0, *borders], [*borders, length], strict=True)]
    parts = stage_parts(config, cut_by_counts(config, counts))
    assert [layer for part in parts for layer in part.layers] == list(range(7))
    assert [part.embeds for part in parts] == [True] + [False] * (len(parts) - 1)
    assert [part.has_head for part in parts] == [False] * (len(parts) - 1) + [True]
    assert sum(part.has_norm for part in parts) == 1
    assert sum(part.mtp_depths for part in parts) == (3 if config is DEEP else 0)
    for before, part in itertools.pairwise(parts):
        assert part.follows_mtp == (before.mtp_depths > 0)
        assert part.is_normed == (before.has_norm or before.is_normed)
        # Who reads a normalised state finds it so.
        if part.mtp_depths or (part.has_head and config is DRAFTLESS):
            assert part.has_norm


def test_chain_is_the_planners() -> None:
    for config in (DEEP, DRAFTLESS):
        pieces = model_pieces(
            config,
            TrainingRun(total_tokens=1, context_tokens=64),
            Layout(gpus=1),
            find_hardware("h100"),
            Precision(),
        )
        assert len(pieces) == chain_length(config)


def test_mtp_goes_where_it_is_told() -> None:
    work = [1.0] * chain_length(DEEP)
    before = stage_parts(DEEP, cut_by_work(DEEP, work, 4, "before_last"))
    assert [part.mtp_depths for part in before] == [0, 0, 3, 0]
    assert not before[3].layers
    assert before[3].follows_mtp
    assert Placement(tuple(before), (0, 1, 2, 3)).homes("embed_tokens.weight") == [0, 2]
    last = stage_parts(DEEP, cut_by_work(DEEP, work, 4, "last"))
    assert [part.mtp_depths for part in last] == [0, 0, 0, 3]
    assert not last[3].follows_mtp
    assert Placement(tuple(last), tuple(v_placement(2))).homes("embed_tokens.weight") == [0]


def test_work_decides_how_many_layers_a_stage_has() -> None:
    work = [0.0] + [1.0] * 7 + [3.0, 4.0]
    cut = cut_by_work(DEEP, work, 4)
    assert max(sum(work[i] for i in run) for run in cut) == 4.0


def test_a_layer_stays_with_the_indexer_that_it_shares() -> None:
    types = ["full", "shared", "full", "shared"]
    config = preset("nano", num_hidden_layers=4, indexer_types=types)
    stage_parts(config, cut_by_counts(config, [3, 4]))
    with pytest.raises(ConfigError, match="a cut before layer 1"):
        stage_parts(config, cut_by_counts(config, [2, 5]))


def test_counts_must_add_up() -> None:
    with pytest.raises(ConfigError, match="add up to 6"):
        cut_by_counts(TINY, [2, 3])
    with pytest.raises(ConfigError, match="at most 4 stages"):
        cut_by_work(TINY, [1.0] * 6, 6, "last")


def test_depths_of_no_use_take_no_piece() -> None:
    assert chain_length(preset("nano", fivefold=FivefoldFields(mtp_depths=0))) == 2 + 4
