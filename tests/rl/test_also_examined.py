"""Tasks that a policy is examined on without training on them."""

import json
from pathlib import Path

import pytest

from fivefold.envs.config import FileConfig, ProceduralConfig, TaskConfig
from fivefold.errors import ConfigError
from fivefold.rl.loop_config import EvaluationConfig, RlConfig, SourceConfig
from fivefold.rl.reinforce import Supply, open_supply
from fivefold.text.bpe import train_tokenizer
from fivefold.text.config import TokenizerConfig
from fivefold.text.tokenizer import Tokenizer
from fivefold.verify.verifier import Verifier

COPY, SORT = (ProceduralConfig(skill=skill, split="heldout") for skill in ("copy", "sort"))


def supply_of(*also: TaskConfig, prompts: int = 3) -> Supply:
    config = RlConfig(
        sources=(SourceConfig(task=ProceduralConfig(skill="copy"), heldout=COPY),),
        evaluation=EvaluationConfig(prompts=prompts, also=also),
    )
    tokenizer = Tokenizer(train_tokenizer(["ab " * 99], TokenizerConfig(vocab_size=421)))
    with Verifier(config.verifier) as verifier:
        return open_supply(config.sources, config, tokenizer, verifier)


def test_they_are_asked_after_the_sources_and_never_trained_on() -> None:
    supply = supply_of(SORT)
    assert [prompt.source for prompt in supply.heldout] == ["copy"] * 3 + ["sort"] * 3
    assert [source.name for source in supply.sources] == ["copy"]


def test_nothing_is_asked_where_no_prompts_are_wanted() -> None:
    assert not supply_of(SORT, prompts=0).heldout


@pytest.mark.parametrize("also", [(COPY,), (SORT, SORT)], ids=["trains", "twice"])
def test_task_of_a_name_that_is_taken_is_refused(also: tuple[ProceduralConfig, ...]) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.also"):
        supply_of(*also)


def test_sources_of_one_name_are_numbered_past_those_that_have_the_number(tmp_path: Path) -> None:
    path = tmp_path / "copy_2.jsonl"
    path.write_text(json.dumps({"prompt": "a", "answer": "ab", "verifier": "exact"}))
    numbered = FileConfig(path=str(path))
    tokenizer = Tokenizer(train_tokenizer(["ab " * 99], TokenizerConfig(vocab_size=421)))

    def names_of(*tasks: TaskConfig, also: tuple[TaskConfig, ...] = ()) -> list[str]:
        config = RlConfig(
            sources=tuple(SourceConfig(task=task, heldout=task) for task in tasks),
            evaluation=EvaluationConfig(prompts=1, also=also),
        )
        with Verifier(config.verifier) as verifier:
            supply = open_supply(config.sources, config, tokenizer, verifier)
        names = [source.name for source in supply.sources]
        assert names == [prompt.source for prompt in supply.heldout]
        return names

    assert names_of(COPY, COPY, COPY) == ["copy", "copy_2", "copy_3"]
    assert names_of(COPY, COPY, numbered) == ["copy", "copy_2", "copy_2_2"]
    assert names_of(numbered, COPY, COPY) == ["copy_2", "copy", "copy_3"]
    with pytest.raises(ConfigError, match=r"evaluation\.also"):
        names_of(COPY, COPY, also=(numbered,))


def test_no_problem_of_a_short_file_is_asked_twice(tmp_path: Path) -> None:
    rows = [{"prompt": letter, "answer": "ab", "verifier": "exact"} for letter in "ab"]
    path = tmp_path / "two.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    supply = supply_of(FileConfig(path=str(path)), prompts=5)
    assert [prompt.source for prompt in supply.heldout] == ["copy"] * 5 + ["two"] * 2
