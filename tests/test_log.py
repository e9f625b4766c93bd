"""What reaches the console and `log.txt`, and that nothing of it outlives the run."""

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from fivefold.log import logging_to, progress_on

logger = logging.getLogger("fivefold.room")


@pytest.fixture
def package() -> Iterator[logging.Logger]:
    logger = logging.getLogger("fivefold")
    before = (logger.level, logger.propagate, list(logger.handlers))
    yield logger
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def console(*, terminal: bool = False) -> Console:
    return Console(
        file=io.StringIO(), width=120, force_terminal=terminal, _environ={"TERM": "xterm"}
    )


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_console_gets_the_story_and_the_file_everything(
    package: logging.Logger, tmp_path: Path
) -> None:
    screen = console()
    with logging_to(screen, tmp_path / "log.txt"):
        logger.info("pretrain: starts")
        logger.debug("a detail with [brackets]")
        logger.warning("a [bold] name")
    assert "pretrain: starts" in shown(screen)
    assert "a [bold] name" in shown(screen)
    assert "detail" not in shown(screen)
    kept = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "INFO fivefold.room: pretrain: starts\n" in kept
    assert "DEBUG fivefold.room: a detail with [brackets]\n" in kept


def test_second_run_appends_to_the_file_and_leaves_the_first_console(
    package: logging.Logger, tmp_path: Path
) -> None:
    first, second = console(), console()
    for screen, text in ((first, "one"), (second, "two")):
        with logging_to(screen, tmp_path / "log.txt"):
            logger.info(text)
    assert "two" not in shown(first)
    assert "one" not in shown(second)
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2


def test_no_file_is_made_where_none_is_given(
    package: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with logging_to(console()):
        logger.info("one")
    assert list(tmp_path.iterdir()) == []


def test_handlers_go_when_the_run_fails(package: logging.Logger) -> None:
    screen = console()
    with pytest.raises(ZeroDivisionError), logging_to(screen):
        raise ZeroDivisionError
    logger.info("after")
    assert "after" not in shown(screen)


def test_other_packages_stay_out_of_the_log(package: logging.Logger, tmp_path: Path) -> None:
    with logging_to(console(), tmp_path / "log.txt"):
        logging.getLogger("elsewhere").warning("noise")
    assert (tmp_path / "log.txt").read_text() == ""


def test_progress_draws_nothing_off_a_terminal() -> None:
    screen = console()
    with progress_on(screen)("train", 10, "tokens") as task:
        task.advance(5, loss="3.1")
    assert shown(screen) == ""


def test_progress_shows_share_unit_and_values_on_a_terminal() -> None:
    screen = console(terminal=True)
    with progress_on(screen)("train", 10, "tokens") as task:
        task.advance(5, loss="3.1", rate="2")
    drawn = shown(screen)
    for part in ("train", "50%", "tokens/s", "loss 3.1  rate 2"):
        assert part in drawn


def test_progress_line_closes_when_the_work_fails() -> None:
    screen = console(terminal=True)
    track = progress_on(screen)
    with pytest.raises(ZeroDivisionError), track("one", 1, "rows"):
        raise ZeroDivisionError
    # rich refuses a second live line on one console while the first is open.
    with track("two", 1, "rows") as task:
        task.advance()
    assert "two" in shown(screen)
