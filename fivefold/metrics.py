"""The one record of a run's numbers: `metrics.jsonl`.

One line is one moment of one stage: `{"stage": ..., "step": ..., "time_seconds": ...,
"room/quantity_unit": number, ...}`. The console line, the report's curves and any tracker derive
from it. A stage that resumes at step n first forgets its lines after n, so that a killed and an
uninterrupted run leave the same curve.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fivefold.errors import CorruptFileError


class StageMetrics:
    """Appends the numbers of one stage to the run's `metrics.jsonl`."""

    def __init__(
        self,
        path: Path,
        stage: str,
        *,
        show: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Bind to a file and a stage; `show` receives console lines."""
        self._path = path
        self._stage = stage
        self._show = show
        self._clock = clock
        self._mended = False

    def write(self, step: int, values: Mapping[str, float], *, shown: str | None = None) -> None:
        """Append one record; `shown` is a line for the console, rendered from the same numbers."""
        record = {"stage": self._stage, "step": step, "time_seconds": round(self._clock(), 3)}
        record.update({name: _plain(value) for name, value in values.items()})
        if not self._mended:
            _drop_cut_line(self._path)
            self._mended = True
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if shown is not None and self._show is not None:
            self._show(shown)

    def forget_after(self, step: int) -> None:
        """Drop this stage's records of later steps; a stage calls it when it resumes at `step`."""
        self._keep(lambda record: record["step"] <= step)

    def write_once(self, step: int, values: Mapping[str, float], *, shown: str) -> None:
        """Write a record that a resumed stage may come to again; the later one stands."""
        names = set(values)
        self._keep(lambda record: record["step"] != step or not names <= record.keys())
        self.write(step, values, shown=shown)

    def _keep(self, is_kept: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrite the file without those records of this stage that `is_kept` refuses."""
        if not self._path.exists():
            return
        records = read_metrics(self._path)
        kept = [r for r in records if r["stage"] != self._stage or is_kept(r)]
        partial = self._path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)


def _drop_cut_line(path: Path) -> None:
    """Remove what a kill left of a last line, so that the next record starts a line of its own."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


def _plain(value: float) -> float | int | str:
    """Keep JSON valid: non-finite numbers become the strings `nan`, `inf`, `-inf`."""
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        return str(number)
    return int(value) if number.is_integer() and abs(number) < 2**53 else number


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read all records, in order. A last line cut by a kill is left out.

    Raises:
        CorruptFileError: a line before the last is not JSON.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise CorruptFileError(
                expected=f"one JSON object a line in `{path}`",
                found=f"line {number}: {line[:80]!r}",
                fix="Remove that line, or start the run anew with `--fresh`",
            ) from error
    return records
