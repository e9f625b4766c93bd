"""Errors that a user can act on.

Every mistake that a user can make (a wrong key, a missing file, a full disk) is raised as a
`FivefoldError` child. Each child is also the builtin that it refines, so that library users can
catch either. The three keyword arguments force the rule of `CONTRIBUTING.md`: a message says what
was expected, what was found and what to do. The command line prints the message as one paragraph
and exits with code 2; a traceback means a defect in Fivefold.
"""


class FivefoldError(Exception):
    """A user's mistake, or a fault of their machine, with the way out."""

    def __init__(self, *, expected: str, found: str, fix: str) -> None:
        """Compose the message; each part is a phrase without its final full stop."""
        self.expected = expected
        self.found = found
        self.fix = fix
        super().__init__(f"Expected {expected}; found {found}. {fix}.")

    def __reduce__(self) -> tuple:
        """Survive pickling, which worker processes need."""
        return _rebuild, (type(self), self.expected, self.found, self.fix)


def _rebuild(kind: type[FivefoldError], expected: str, found: str, fix: str) -> FivefoldError:
    return kind(expected=expected, found=found, fix=fix)


class ConfigError(FivefoldError, ValueError):
    """A configuration that cannot work: unknown key, wrong type, impossible shape."""


class MissingFileError(FivefoldError, FileNotFoundError):
    """A file or directory that a command needs does not exist."""


class CorruptFileError(FivefoldError, ValueError):
    """A file exists but its content is truncated, altered or of another kind."""


class MismatchError(FivefoldError, ValueError):
    """Two artifacts that do not belong together: a tokenizer and a checkpoint, say."""


class DownloadError(FivefoldError, ConnectionError):
    """Data cannot be fetched: no network, no such package, no cached copy."""


class StorageError(FivefoldError, OSError):
    """The disk is full, read-only or failing."""


class RunDirectoryError(FivefoldError, FileExistsError):
    """A run directory belongs to another run."""


class DivergenceError(FivefoldError, ArithmeticError):
    """Training met non-finite losses or gradients more often than its policy allows."""
