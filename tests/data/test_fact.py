import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data import planted_words
from fivefold.data.config import PlantedConfig
from fivefold.data.fact import Fact, FactSource
from fivefold.errors import ConfigError

SMALL = PlantedConfig(number_digits=3, word_share=0)


def draw_values(config: PlantedConfig, split: str, count: int) -> list[str]:
    source, random = FactSource(config, split), np.random.default_rng(0)
    return [source.draw(random, "", set()).value for _ in range(count)]


def test_no_list_names_a_thing_twice():
    lists = {name: value for name, value in vars(planted_words).items() if name.isupper()}
    assert len(lists) == 8
    for words in lists.values():
        assert len(set(words)) == len(words) >= 8
    assert not set(planted_words.PLACES) & set(planted_words.LAST_NAMES)
    assert not set(planted_words.NUMBER_ATTRIBUTES) & set(planted_words.WORD_ATTRIBUTES)


def test_sentence_is_question_and_value():
    place = Fact("access code", "lighthouse", "Varna", "48213")
    person = Fact("password", "Marta", "Vane", "amber falcon")
    assert place.sentence == "The access code of the lighthouse at Varna is 48213."
    assert person.sentence == "The password of Marta Vane is amber falcon."
    assert place.sentence.startswith(place.question + " ")


@pytest.mark.parametrize("config", [SMALL, PlantedConfig(word_share=1)])
def test_no_value_repeats_and_heldout_ones_are_others(config: PlantedConfig):
    train, heldout = draw_values(config, "train", 700), draw_values(config, "heldout", 170)
    assert len(set(train)) == 700
    assert len(set(heldout)) == 170
    assert not set(train) & set(heldout)


def test_values_are_used_to_the_last_one_and_no_further():
    numbers = {str(number) for number in range(100, 1000)}
    assert set(draw_values(SMALL, "train", 720) + draw_values(SMALL, "heldout", 180)) == numbers
    with pytest.raises(ConfigError, match="number_digits"):
        draw_values(SMALL, "train", 721)


def test_values_and_questions_of_the_text_are_not_drawn():
    first = FactSource(SMALL, "train").draw(np.random.default_rng(3), "", set())
    haystack = f"See {first.value}. {first.question} unknown."
    other = FactSource(SMALL, "train").draw(np.random.default_rng(3), haystack, set())
    assert other.value not in haystack
    assert other.question not in haystack


@given(seed=st.integers(0, 10**6))
def test_distractor_differs_in_one_part_of_the_subject(seed: int):
    source, random = FactSource(PlantedConfig(), "train"), np.random.default_rng(seed)
    fact = source.draw(random, "", set())
    other = source.draw_distractor(random, fact, "", {fact.question})
    assert other.attribute == fact.attribute
    assert (other.first == fact.first) != (other.second == fact.second)
    assert other.value != fact.value
    assert other.value.isdigit() == fact.value.isdigit()
