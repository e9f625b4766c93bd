"""Optional packages: imported where they are needed, with a clear word where they are missing."""

import importlib.util

from fivefold.errors import FivefoldError


class MissingPackageError(FivefoldError, ModuleNotFoundError):
    """An optional package that a chosen task or verifier needs is not installed."""


def require_package(module: str, *, package: str, extra: str, why: str) -> None:
    """Raise a MissingPackageError unless the module can be imported; imports nothing."""
    if importlib.util.find_spec(module) is None:
        raise MissingPackageError(
            expected=f"the package `{package}`, which {why} needs",
            found="that it is not installed",
            fix=f"Install it with `pip install 'fivefold[{extra}]'`",
        )
