"""Functions of one's own, by name: `module:function` or `path/file.py:function`.

A module is looked up where Python looks; a file is loaded by its path, each time anew, under a name
that no module has. Importing runs the user's code: that is what it is for.
"""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from fivefold.errors import ConfigError


def load_target(target: str) -> Callable[..., Any]:
    """Return the function that a target names.

    Raises:
        ConfigError: no such module, file or function, or a module that cannot be imported.
    """
    place, _, name = target.rpartition(":")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(
            expected=f"`{target}` to name a function that can be imported",
            found=f"{type(error).__name__}: {error}",
            fix="Write `module:function` or `path/file.py:function`, and try `python -c 'import "
            "MODULE'` in the same directory",
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(
            expected=f"a function `{name}` in `{place}`",
            found="no such name" if function is None else type(function).__name__,
            fix="Correct the name after the colon",
        )
    return function


def _load_module(name: str) -> ModuleType:
    return importlib.import_module(name)


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"no file `{path}`")
    spec = importlib.util.spec_from_file_location(f"_fivefold_target_{path.stem}", path)
    assert spec is not None, "a .py file has a spec"
    assert spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
