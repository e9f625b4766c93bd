import pydantic
import pytest

from fivefold.config import apply_overrides, hash_config
from fivefold.data.curate.config import BloomConfig, CurateConfig, RepetitionConfig


def test_what_runs_the_work_is_no_part_of_what_it_makes():
    config = CurateConfig()
    assert hash_config(config.model_copy(update={"workers": 8})) == hash_config(config)
    assert hash_config(config.model_copy(update={"tasks": 9})) != hash_config(config)


def test_thresholds_are_reached_by_overrides():
    overrides = ["web.heuristics.repetition.lines=0.5", "web.bloom=null", "web.minhash.bands=20"]
    config = apply_overrides({"web": CurateConfig()}, overrides)["web"]
    assert config.heuristics is not None
    assert config.minhash is not None
    assert config.heuristics.repetition.lines == 0.5
    assert config.bloom is None
    assert config.minhash.bands == 20


def test_impossible_values_are_refused():
    with pytest.raises(pydantic.ValidationError, match="ascending"):
        RepetitionConfig(top=((3, 0.1), (2, 0.2)))
    with pytest.raises(pydantic.ValidationError, match="min_ngram_words"):
        BloomConfig(min_ngram_words=14)
    with pytest.raises(pydantic.ValidationError, match="less than or equal to 1"):
        RepetitionConfig(lines=1.5)
