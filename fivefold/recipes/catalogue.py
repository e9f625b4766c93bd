"""Recipes by name, with a user's overrides applied."""

from collections.abc import Callable, Sequence

from fivefold.config import apply_overrides
from fivefold.errors import ConfigError
from fivefold.recipes.fit import check_fit
from fivefold.recipes.glm5 import glm5
from fivefold.recipes.mini import mini
from fivefold.recipes.nano import nano
from fivefold.recipes.small import small
from fivefold.stage import Stage

RECIPES: dict[str, Callable[[], list[Stage]]] = {
    "nano": nano,
    "mini": mini,
    "small": small,
    "glm5": glm5,
}


def load_recipe(name: str, overrides: Sequence[str] = ()) -> list[Stage]:
    """Return the stages of a recipe after `stage.key=value` overrides.

    Raises:
        ConfigError: an unknown recipe, stage or key, or a value that does not fit.
    """
    if name not in RECIPES:
        raise ConfigError(
            expected="the name of a recipe",
            found=repr(name),
            fix=f"Choose one of {', '.join(RECIPES)}",
        )
    stages = RECIPES[name]()
    configs = apply_overrides({stage.name: stage.config for stage in stages}, overrides)
    changed = [stage.with_config(configs[stage.name]) for stage in stages]
    check_fit(changed)
    return changed
