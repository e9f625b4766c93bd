"""Functions of rooms above this one, named in a config as `MODULE:FUNCTION`.

A string travels to worker processes, and only who runs a step imports what it names.
"""

import importlib
from collections.abc import Callable
from typing import Any

from fivefold.errors import ConfigError


def load_factory(target: str, field: str) -> Callable[..., Any]:
    """Return the function that a config's field names.

    Raises:
        ConfigError: no such module or function.
    """
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            expected=f"`{field}` to be MODULE:FUNCTION",
            found=f"{target!r}: {error}",
            fix="Correct it; the module must be importable, for example through PYTHONPATH",
        ) from error
