"""Recipes fit together on paper: their stages, shapes, contexts and tokens."""

import sys

import pytest

from fivefold.config import config_to_json, hash_config
from fivefold.data.config import TokenizerTrainingConfig, TokensConfig
from fivefold.envs.config import ProceduralConfig
from fivefold.errors import ConfigError
from fivefold.models.preset import PRESETS
from fivefold.recipes.catalogue import RECIPES, load_recipe
from fivefold.recipes.launch import resolve_device
from fivefold.rl.loop_config import DistillConfig, RlConfig
from fivefold.rl.reinforce import open_supply
from fivefold.stage import Selection, order_stages, select_stages
from fivefold.text.bpe import train_tokenizer
from fivefold.text.config import TokenizerConfig
from fivefold.text.tokenizer import Tokenizer
from fivefold.train.config import PretrainConfig
from fivefold.verify.verifier import Verifier

every_recipe = pytest.mark.parametrize("name", RECIPES)


def pretrain_of(name: str, *overrides: str) -> PretrainConfig:
    config = {stage.name: stage.config for stage in load_recipe(name, overrides)}["pretrain"]
    assert isinstance(config, PretrainConfig)
    return config


@every_recipe
def test_stages_stand_in_the_order_in_which_they_run(name: str) -> None:
    stages = load_recipe(name)
    assert [stage.name for stage in order_stages(stages)] == [stage.name for stage in stages]
    assert all(stage.what for stage in stages)


@every_recipe
def test_tokenizer_and_packs_fit_the_model(name: str) -> None:
    configs = {stage.name: stage.config for stage in load_recipe(name)}
    tokenizer, tokens, pretrain = (configs[stage] for stage in ("tokenizer", "tokens", "pretrain"))
    assert isinstance(tokenizer, TokenizerTrainingConfig)
    assert isinstance(tokens, TokensConfig)
    assert isinstance(pretrain, PretrainConfig)
    assert tokenizer.tokenizer.vocab_size == pretrain.model.vocab_size
    assert pretrain.context_tokens in tokens.contexts
    assert pretrain.model == PRESETS[name]


@every_recipe
def test_batches_are_whole_microbatches_from_start_to_end(name: str) -> None:
    config = pretrain_of(name)
    assert config.batch_rows % config.microbatch_rows == 0
    assert config.batch_rows_start % config.microbatch_rows == 0
    assert config.total_tokens > config.batch_rows * config.context_tokens


@every_recipe
def test_recipe_is_made_anew_at_each_call(name: str) -> None:
    first, second = load_recipe(name), load_recipe(name)
    assert [hash_config(stage.config) for stage in first] == [
        hash_config(stage.config) for stage in second
    ]
    assert all(one is not other for one, other in zip(first, second, strict=True))


@every_recipe
def test_every_config_survives_json(name: str) -> None:
    for stage in load_recipe(name):
        again = type(stage.config).model_validate(config_to_json(stage.config))
        assert hash_config(again) == hash_config(stage.config)


@every_recipe
def test_override_changes_its_stage_alone(name: str) -> None:
    before, after = load_recipe(name), load_recipe(name, ["pretrain.peak_lr=0.125"])
    assert pretrain_of(name, "pretrain.peak_lr=0.125").peak_lr == 0.125
    for old, new in zip(before, after, strict=True):
        assert (old.config == new.config) == (old.name != "pretrain")
        assert (old.name, old.needs, type(old)) == (new.name, new.needs, type(new))


def test_glm5_follows_the_published_schedule() -> None:
    config = pretrain_of("glm5")
    assert config.total_tokens == 27_000_000_000_000
    assert (config.peak_lr, config.final_lr) == (2e-4, 4e-5)
    assert config.batch_rows * config.context_tokens == 64 * 2**20
    assert config.batch_rows_start * config.context_tokens == 16 * 2**20
    assert config.batch_warmup_fraction * config.total_tokens == pytest.approx(500e9)


def test_rows_beyond_the_models_context_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_position_embeddings"):
        load_recipe("nano", ["pretrain.context_tokens=2048"])


def test_batch_of_broken_microbatches_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of `microbatch_rows`"):
        load_recipe("nano", ["pretrain.batch_rows=12"])


def test_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="nano, mini, small, glm5"):
        load_recipe("nanno")


def test_cpu_is_taken_without_asking_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert resolve_device("cpu") == "cpu"


@pytest.mark.parametrize(("has_cuda", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_cuda_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, has_cuda: bool, device: str
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert resolve_device("auto") == device


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretrain.context_tokens=128", "tokens.contexts"),
        ("tokenizer.tokenizer.vocab_size=4096", "vocab_size"),
        ("pretrain.model.max_position_embeddings=512", "max_position_embeddings"),
        ("adapt_dsa.index_topk=4096", "index_topk"),
        ("pretrain.model.index_n_heads=null", "indexer"),
    ],
)
def test_stages_that_do_not_fit_are_refused_before_the_first_runs(
    override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("nano", [override])


def test_nano_experts_follow_each_other_and_teach_one_student() -> None:
    stages = {stage.name: stage for stage in load_recipe("nano")}
    assert stages["rl_a"].needs["start"] == "sft"
    assert stages["rl_b"].needs["start"] == "rl_a"
    first, second, student = (stages[name].config for name in ("rl_a", "rl_b", "distill"))
    assert isinstance(first, RlConfig)
    assert isinstance(second, RlConfig)
    assert isinstance(student, DistillConfig)
    taught = [stages["distill"].needs[source.teacher] for source in student.sources]
    assert taught == ["rl_a", "rl_b"]
    # Each teacher judges the skill that it has learned.
    skills = [
        source.task.skill
        for config in (first, second, student)
        for source in config.sources
        if isinstance(source.task, ProceduralConfig)
    ]
    assert skills == ["reverse", "sort", "reverse", "sort"]


def test_nano_experts_are_examined_on_the_same_problems_whoever_trains_on_them() -> None:
    configs = {stage.name: stage.config for stage in load_recipe("nano")}
    asked = []
    tokenizer = Tokenizer(train_tokenizer(["ab " * 99], TokenizerConfig(vocab_size=421)))
    for name in ("rl_a", "rl_b", "distill"):
        config = configs[name]
        assert isinstance(config, RlConfig | DistillConfig)
        with Verifier(config.verifier) as verifier:
            supply = open_supply(config.sources, config, tokenizer, verifier)
        asked.append({prompt.group for prompt in supply.heldout})
    assert asked[0] == asked[1] == asked[2]


def test_nano_stops_before_fine_tuning_where_asked() -> None:
    chosen = select_stages(load_recipe("nano"), Selection(until="adapt_dsa"))
    assert chosen[-1].name == "adapt_dsa"
    assert not {"sft", "rl_a"} & {stage.name for stage in chosen}
    through = [s.name for s in select_stages(load_recipe("nano"), Selection(until="sft"))]
    assert through[-2:] == ["tasks", "sft"]
