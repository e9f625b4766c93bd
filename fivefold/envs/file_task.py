r"""Tasks from a JSONL file: rows of one's own, or GSM8K's.

The file is read and checked once, when the task is opened: an unusable row is found before the
first step and not in the middle of a night. GSM8K (Cobbe et al. 2021, arXiv 2110.14168) gives
`question` and a worked `answer` that ends with `#### 42`; its calculator marks `<<6*7=42>>` are for
another model and go.
"""

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fivefold.data.order import permuted_index
from fivefold.envs.config import FileConfig
from fivefold.envs.row import read_row
from fivefold.envs.task import Problem, name_group
from fivefold.errors import ConfigError, CorruptFileError, MissingFileError
from fivefold.text.tool import parse_json
from fivefold.verify.number import read_number

logger = logging.getLogger(__name__)

_GSM8K_INSTRUCTION = r"Put the final answer in \boxed{}."
_CALCULATOR = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True)
class RowFault:
    """A row that was left out."""

    line: int
    """Line of the file, from 1."""
    reason: str


class FileTask:
    """The problems of a file."""

    def __init__(self, config: FileConfig) -> None:
        """Read and check all rows.

        Raises:
            MissingFileError: there is no such file.
            CorruptFileError: an unusable row (unless they are skipped), or no usable one.
        """
        self.path = path = Path(config.path).expanduser()
        """The file."""
        if not path.is_file():
            raise MissingFileError(
                expected=f"a task file at `{config.path}`", found="no such file", fix="Correct it"
            )
        self._config = config
        self.name = path.stem
        """The file's name without its ending."""
        self.faults: tuple[RowFault, ...] = ()
        """Rows that were left out, with their reasons."""
        self.rows = tuple(problems := self._read(path))
        """Usable rows in the file's order; `problem` gives them in the configured one."""
        if config.order == "rising":
            problems.sort(key=lambda problem: problem.difficulty)
        self._problems = tuple(problems)

    @property
    def size(self) -> int:
        """Number of usable rows."""
        return len(self._problems)

    def problem(self, index: int) -> Problem:
        """Return problem `index` of the configured order, which begins again after the last."""
        time_round, place = divmod(index, self.size)
        if self._config.order == "shuffled":
            place = int(permuted_index(place, self.size, self._config.seed, time_round))
        problem = self._problems[place]
        return replace(problem, group=name_group(problem.id, index))

    def _read(self, path: Path) -> list[Problem]:
        problems, faults, ids = list[Problem](), list[RowFault](), set[str]()
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    problem = self._read_line(line, number)
                    if problem.id in ids:
                        raise ValueError(f"the id `{problem.id}` came before")
                except ValueError as error:  # JSON, UTF-8 and ConfigError are among them
                    faults.append(RowFault(number, str(error).removesuffix(".")))
                else:
                    ids.add(problem.id)
                    problems.append(problem)
        self.faults = tuple(faults)
        if faults:
            found = (
                f"{len(faults)} unusable of {len(faults) + len(problems)}, the first in line "
                f"{faults[0].line}: {faults[0].reason}"
            )
            if self._config.malformed == "refuse" or not problems:
                raise CorruptFileError(
                    expected=f"usable rows in `{path.name}`",
                    found=found,
                    fix="Correct them, or set `malformed` to `skip`",
                )
            logger.warning("rows of `%s` are left out: %s", path.name, found)
        if not problems:
            raise CorruptFileError(
                expected=f"rows in `{path.name}`", found="none", fix="Give one JSON object a line"
            )
        return problems

    def _read_line(self, line: bytes, number: int) -> Problem:
        row = parse_json(line.decode())
        config = self._config
        instruction, verifier = config.instruction, config.verifier
        if config.form == "gsm8k":
            row = gsm8k_row(row)
            instruction = instruction or _GSM8K_INSTRUCTION
            verifier = verifier or {"kind": "number", "answer_in": "boxed"}
        return read_row(
            row,
            task=self.name,
            index=number,
            where=f"line {number}",
            verifier=verifier,
            instruction=instruction,
        )


def gsm8k_row(row: object) -> dict[str, Any]:
    """Return a row of ours from one of GSM8K; its solution thinks and then boxes the answer.

    Raises:
        ConfigError: no question, or no number after `####`.
    """
    texts = row if isinstance(row, dict) else {}
    question, worked = texts.get("question"), texts.get("answer")
    if not isinstance(question, str) or not isinstance(worked, str):
        raise ConfigError(
            expected="text under `question` and `answer`",
            found=repr(row)[:200],
            fix="Give GSM8K's two fields",
        )
    steps, mark, answer = worked.rpartition("####")
    answer = answer.strip()
    if not mark or read_number(answer) is None:
        raise ConfigError(
            expected="an answer that ends with `####` and a number",
            found=repr(worked[-60:]),
            fix="Give the final number after `####`",
        )
    return {
        **({"id": texts["id"]} if "id" in texts else {}),
        "prompt": question,
        "answer": answer,
        "thinking": _CALCULATOR.sub("", steps).strip(),
        "solution": f"\\boxed{{{answer}}}",
    }
