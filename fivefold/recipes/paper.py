"""What of a recipe is planned on paper: its models and the runs that train them."""

from collections.abc import Sequence

from fivefold.config import apply_overrides
from fivefold.errors import ConfigError
from fivefold.models.config import ModelConfig
from fivefold.models.preset import PRESETS
from fivefold.plan.config import TrainingRun
from fivefold.recipes.catalogue import RECIPES, load_recipe
from fivefold.train.config import PretrainConfig


def models_to_plan(
    name: str, overrides: Sequence[str] = ()
) -> list[tuple[str, ModelConfig, TrainingRun | None]]:
    """Return name, shape and training run of each model that a recipe trains from nothing.

    A preset that is no recipe is one model without a run.

    Raises:
        ConfigError: neither a recipe nor a preset, or overrides that do not fit.
    """
    if name in PRESETS and name not in RECIPES:
        return [(name, apply_overrides({"model": PRESETS[name]}, overrides)["model"], None)]
    if name not in RECIPES:
        others = [preset for preset in PRESETS if preset not in RECIPES]
        raise ConfigError(
            expected="a recipe or a model preset",
            found=repr(name),
            fix=f"Choose one of {', '.join([*RECIPES, *others])}",
        )
    return [
        (f"{name}.{stage.name}", stage.config.model, _training_run(stage.config))
        for stage in load_recipe(name, overrides)
        if isinstance(stage.config, PretrainConfig)
    ]


def _training_run(config: PretrainConfig) -> TrainingRun:
    return TrainingRun(
        total_tokens=config.total_tokens,
        context_tokens=config.context_tokens,
        batch_tokens=config.batch_rows * config.context_tokens,
    )
