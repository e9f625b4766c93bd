"""What a person sees of a run: a short story on the console, progress, and everything in `log.txt`.

INFO tells what the run does in a few lines; DEBUG is for the file. Numbers do not go here: they go
to `metrics.jsonl`, from which the console's step lines are rendered.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text


@contextmanager
def logging_to(console: Console, log_path: Path | None = None) -> Iterator[None]:
    """Send the package's records to the console, and to `log_path` (appended) where one is given.

    The handlers are removed at the end, so that several runs in one process do not mix.
    """
    package = logging.getLogger("fivefold")
    shown = RichHandler(
        console=console, show_path=False, show_level=False, markup=False, log_time_format="%X"
    )
    shown.setLevel(logging.INFO)
    handlers: list[logging.Handler] = [shown]
    if log_path is not None:
        kept = logging.FileHandler(log_path, encoding="utf-8")
        kept.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(kept)
    before = package.level, package.propagate
    package.setLevel(logging.DEBUG)
    package.propagate = False
    for handler in handlers:
        package.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            package.removeHandler(handler)
            handler.close()
        package.setLevel(before[0])
        package.propagate = before[1]


class ProgressLine:
    """One open line of progress."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, amount: float = 1, **shown: str) -> None:
        """Count `amount` more units as done; `shown` values stand beside the bar."""
        beside = "  ".join(f"{name} {value}" for name, value in shown.items())
        self._progress.update(self._task, advance=amount, beside=beside)


def progress_on(
    console: Console,
) -> Callable[[str, float, str], AbstractContextManager[ProgressLine]]:
    """Return the function that opens a line of progress on this console.

    Off a terminal nothing is drawn: the step lines tell the progress there.
    """

    @contextmanager
    def track(description: str, total: float, unit: str) -> Iterator[ProgressLine]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            _RateColumn(unit),
            TimeRemainingColumn(),
            TextColumn("{task.fields[beside]}"),
        )
        disabled = not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=disabled) as progress:
            yield ProgressLine(progress, progress.add_task(description, total=total, beside=""))

    return track


class _RateColumn(TextColumn):
    """Units a second, in thousands or millions where that reads better."""

    def __init__(self, unit: str) -> None:
        super().__init__("")
        self._unit = unit

    def render(self, task) -> Text:
        speed = task.speed or 0.0
        for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if speed >= size:
                return Text(f"{speed / size:.1f}{letter} {self._unit}/s")
        return Text(f"{speed:.1f} {self._unit}/s")
