"""Stages: order, skip, resume, set aside, fresh, whole files on failing disks, digests."""

import contextlib
import errno
import json
import multiprocessing
import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.artifact import atomic_write, digest_directory, read_json, storage_errors, write_json
from fivefold.config import Config, Runtime
from fivefold.errors import ConfigError, MissingFileError, RunDirectoryError, StorageError
from fivefold.metrics import StageMetrics, read_metrics
from fivefold.stage import (
    ProgressTask,
    Selection,
    Stage,
    StageContext,
    claim_run_directory,
    order_stages,
    run_stages,
    select_stages,
)


class NoteConfig(Config):
    text: str = "a"
    """What the stage writes."""
    repeat: int = 1
    """How often it writes that."""
    unused: int = 0
    """Changes the config, not what the stage writes."""
    threads: Runtime[int] = 1
    """Changes nothing."""


class NoteStage(Stage):
    """Joins its inputs' notes and its own text; counts steps in `state/` and may die at one."""

    config: NoteConfig
    die_at: int | None = None
    die: Callable[[], None]

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        counter = out / "state" / "step.json"
        done = (read_json(counter) or {"step": 0})["step"]
        if done:
            context.metrics.forget_after(done)
        for step in range(done + 1, 5):
            context.metrics.write(step, {"note/step": step})
            if step == self.die_at:
                (out / "note.txt.partial").write_text("half")
                self.die()
            write_json(counter, {"step": step})
        texts = [(path / "note.txt").read_text() for path in inputs.values()]
        with atomic_write(out / "note.txt") as partial:
            partial.write_text("".join(texts) + self.config.text * self.config.repeat)
        write_json(out / "page" / "00_note.json", {"resumed_at": done})


class SilentTask:
    def advance(self, amount: float = 1, **shown: str) -> None: ...


@contextlib.contextmanager
def silent_track(description: str, total: float, unit: str) -> Iterator[ProgressTask]:
    yield SilentTask()


def chain(**texts: str) -> list[Stage]:
    """Return a -> b -> c; a keyword replaces the text of its stage."""
    return [
        NoteStage("a", NoteConfig(text=texts.get("a", "a"))),
        NoteStage("b", NoteConfig(text=texts.get("b", "b")), {"x": "a"}),
        NoteStage("c", NoteConfig(text=texts.get("c", "c")), {"x": "b", "y": "a"}),
    ]


def die_at_once() -> None:
    os._exit(9)


def let_die(stage: Stage, step: int, die: Callable[[], None] = die_at_once) -> None:
    assert isinstance(stage, NoteStage)
    stage.die_at, stage.die = step, die


def start(
    stages: Sequence[Stage], run: Path, *, seed: int = 0, **selection: str | bool | None
) -> list[str]:
    """Run the stages and return the names of those that executed."""
    executed: list[str] = []

    def context(stage: Stage) -> StageContext:
        real = stage.execute

        def counting(inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
            executed.append(stage.name)
            real(inputs, out, context)

        stage.execute = counting
        metrics = StageMetrics(run / "metrics.jsonl", stage.name, clock=lambda: 0.0)
        return StageContext(seed, "cpu", 1, metrics, silent_track)

    run_stages(stages, run, Selection(**selection), context)  # pyright: ignore[reportArgumentType]
    return executed


@pytest.fixture
def run(tmp_path: Path) -> Path:
    claim_run_directory(tmp_path / "run", "notes")
    return tmp_path / "run"


def note(run: Path, stage: str = "c") -> str:
    return (run / stage / "note.txt").read_text()


def in_child(work: Callable[[], object]) -> int | None:
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    return child.exitcode


def test_stages_run_in_order_and_give_their_directories(run: Path) -> None:
    assert start(list(reversed(chain())), run) == ["a", "b", "c"]
    assert note(run) == "abac"


def test_order_keeps_the_given_order_where_needs_allow_it() -> None:
    stages = [NoteStage(name, NoteConfig()) for name in "dacb"]
    assert [stage.name for stage in order_stages(stages)] == list("dacb")


@given(st.permutations(range(7)), st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6))))
def test_order_puts_every_need_first(given_order: list[int], edges: set[tuple[int, int]]) -> None:
    needs = {name: {b for a, b in edges if a == name and b < a} for name in range(7)}
    stages = [
        NoteStage(str(name), NoteConfig(), {str(need): str(need) for need in needs[name]})
        for name in given_order
    ]
    place = {stage.name: index for index, stage in enumerate(order_stages(stages))}
    assert all(place[str(need)] < place[str(name)] for name in needs for need in needs[name])


@pytest.mark.parametrize("needs", [{"a": "b", "b": "a"}, {"a": "a"}, {"a": "missing"}])
def test_circle_and_unknown_need_are_refused(needs: dict[str, str]) -> None:
    stages = [NoteStage(name, NoteConfig(), {"x": need}) for name, need in needs.items()]
    with pytest.raises(ConfigError, match=f"a needs {needs['a']}"):
        order_stages(stages)


def test_two_stages_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="different names"):
        order_stages([NoteStage("a", NoteConfig()), NoteStage("a", NoteConfig())])


def test_finished_stages_are_skipped(run: Path) -> None:
    start(chain(), run)
    records = read_metrics(run / "metrics.jsonl")
    assert start(chain(), run) == []
    assert read_metrics(run / "metrics.jsonl") == records


def test_runtime_field_does_not_start_a_stage_again(run: Path) -> None:
    start(chain(), run)
    stages = [
        stage.with_config(stage.config.model_copy(update={"threads": 8})) for stage in chain()
    ]
    assert start(stages, run) == []


def test_changed_config_sets_aside_and_runs_downstream(run: Path) -> None:
    start(chain(), run)
    assert start(chain(b="B"), run) == ["b", "c"]
    assert note(run) == "aBac"
    assert note(run / "previous", "b-1") == "ab"
    assert note(run / "previous", "c-1") == "abac"
    assert start(chain(b="β"), run) == ["b", "c"]
    assert note(run / "previous", "b-2") == "aB"


def test_downstream_is_kept_where_the_output_is_the_same(run: Path) -> None:
    start(chain(), run)
    stages = chain()
    stages[0] = stages[0].with_config(NoteConfig(text="a", unused=1))
    assert start(stages, run) == ["a"]


def test_changed_seed_starts_anew(run: Path) -> None:
    start(chain(), run)
    assert start(chain(), run, seed=1)[0] == "a"


def test_another_kind_of_stage_starts_anew(run: Path) -> None:
    class OtherStage(NoteStage): ...

    start(chain(), run)
    assert start([OtherStage("a", NoteConfig())], run) == ["a"]


def test_killed_run_goes_on_and_equals_an_uninterrupted_one(run: Path, tmp_path: Path) -> None:
    start(chain(), tmp_path / "straight")
    stages = chain()
    let_die(stages[1], 3)
    assert in_child(lambda: start(stages, run)) == 9
    assert not (run / "b" / "finished.json").exists()
    assert start(chain(), run) == ["b", "c"]
    assert read_json(run / "b" / "page" / "00_note.json") == {"resumed_at": 2}
    for name in "abc":
        finished = [
            read_json(place / name / "finished.json") for place in (run, tmp_path / "straight")
        ]
        assert finished[0] is not None
        assert finished[1] is not None
        assert finished[0]["output_digest"] == finished[1]["output_digest"]
    paths = [place / "metrics.jsonl" for place in (run, tmp_path / "straight")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert not (run / "previous").exists()


def test_stage_that_raises_goes_on_where_it_was(run: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    stages = chain()
    let_die(stages[0], 3, fail)
    with pytest.raises(ZeroDivisionError):
        start(stages, run)
    assert start(chain(), run) == ["a", "b", "c"]
    assert read_json(run / "a" / "page" / "00_note.json") == {"resumed_at": 2}


def test_killed_stage_with_another_config_is_set_aside(run: Path) -> None:
    stages = chain()
    let_die(stages[0], 3)
    assert in_child(lambda: start(stages, run)) == 9
    start(chain(a="A"), run)
    assert read_json(run / "a" / "page" / "00_note.json") == {"resumed_at": 0}
    assert (run / "previous" / "a-1" / "state" / "step.json").exists()
    assert len(read_metrics(run / "metrics.jsonl")) == 3 * 4


def test_cut_finished_marker_is_not_taken_for_finished(run: Path) -> None:
    start(chain(), run)
    marker = run / "a" / "finished.json"
    marker.write_bytes(marker.read_bytes()[:-10])
    assert start(chain(), run) == ["a"]


def test_only_runs_one_stage_on_finished_inputs(run: Path) -> None:
    start(chain(), run, until="b")
    assert start(chain(), run, only="c") == ["c"]


def test_only_without_its_inputs_names_the_way(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"`a`.*--until b"):
        start(chain(), run, only="b")


def test_only_and_fresh_without_inputs_delete_nothing(run: Path) -> None:
    start(chain(), run)
    (run / "a" / "finished.json").unlink()
    with pytest.raises(ConfigError):
        start(chain(), run, only="b", fresh=True)
    assert note(run, "b") == "ab"


def test_until_stops_after_the_stage(run: Path) -> None:
    assert start(chain(), run, until="b") == ["a", "b"]
    assert not (run / "c").exists()


def test_fresh_deletes_and_starts_the_selected_stages_anew(run: Path) -> None:
    start(chain(), run)
    (run / "b" / "left").write_text("over")
    assert start(chain(), run, fresh=True, only="b") == ["b"]
    assert not (run / "b" / "left").exists()
    assert not (run / "previous").exists()
    assert start(chain(), run, fresh=True) == ["a", "b", "c"]


def test_selection_refuses_unknown_names_and_both_limits() -> None:
    with pytest.raises(ConfigError, match="Choose one of a, b, c"):
        select_stages(chain(), Selection(only="d"))
    with pytest.raises(ConfigError, match="one of `--only` and `--until`"):
        select_stages(chain(), Selection(only="a", until="b"))


def test_run_directory_is_refused_to_another_recipe(run: Path) -> None:
    write_json(run / "manifest.json", {"recipe": "notes"})
    claim_run_directory(run, "notes")
    with pytest.raises(RunDirectoryError, match="recipe `notes`"):
        claim_run_directory(run, "poems")


@pytest.mark.parametrize("name", ["thesis.tex", "manifest.json"])
@pytest.mark.parametrize("content", [b"mine", b"[]", b"\xff"])
def test_foreign_directory_is_refused_and_untouched(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunDirectoryError, match="no run of Fivefold"):
        claim_run_directory(tmp_path, "notes")
    assert (tmp_path / name).read_bytes() == content


def test_file_in_place_of_a_run_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunDirectoryError):
        claim_run_directory(tmp_path / "run", "notes")


def test_directory_of_a_run_killed_while_claiming_is_taken(tmp_path: Path) -> None:
    (tmp_path / "manifest.json.partial").write_text("{")
    claim_run_directory(tmp_path, "notes")


@pytest.mark.parametrize("before", [None, "old"])
def test_atomic_write_that_fails_leaves_what_was_there(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "deep" / "file"
    if before is not None:
        path.parent.mkdir()
        path.write_text(before)

    def fail_halfway() -> None:
        with atomic_write(path) as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert [file.name for file in path.parent.iterdir()] == ([] if before is None else ["file"])
    assert before is None or path.read_text() == before


def test_atomic_write_replaces_files_and_directories(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with atomic_write(tmp_path / "file") as partial:
            partial.write_text(content)
        with atomic_write(tmp_path / "folder") as partial:
            partial.mkdir()
            (partial / content).write_text(content)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "two"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["two"]


def test_atomic_write_clears_what_a_kill_left(tmp_path: Path) -> None:
    partial = tmp_path / "folder.partial"

    def write_and_die() -> None:
        with atomic_write(tmp_path / "folder") as half:
            half.mkdir()
            (half / "torn").write_text("half")
            os._exit(9)

    assert in_child(write_and_die) == 9
    assert partial.exists()
    assert not (tmp_path / "folder").exists()
    with atomic_write(tmp_path / "folder") as whole:
        whole.mkdir()
    assert list(tmp_path.rglob("*")) == [tmp_path / "folder"]


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_disk_fault_becomes_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(StorageError) as caught:
        write_json(tmp_path / "value.json", {})
    assert os.strerror(fault) in str(caught.value)
    assert "value.json`" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_directory_that_cannot_be_made_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError):
        write_json(tmp_path / "deep" / "value.json", {})


def test_really_full_place_fails_the_stage_and_it_goes_on_later(run: Path) -> None:
    stages = chain()
    stages[0] = stages[0].with_config(NoteConfig(repeat=5000))

    def with_small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with pytest.raises(StorageError):
            start(stages, run)
        assert not (run / "a" / "note.txt").exists()
        assert not (run / "a" / "note.txt.partial").exists()
        os._exit(7)

    assert in_child(with_small_files) == 7
    assert start(stages, run) == ["a", "b", "c"]
    assert read_json(run / "a" / "page" / "00_note.json") == {"resumed_at": 4}


def test_fault_at_a_file_of_the_user_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"to open `/far/book\.txt`"), storage_errors(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied", "/far/book.txt")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file"),
        MissingFileError(expected="a", found="b", fix="C"),
        KeyError("a"),
    ],
)
def test_other_errors_pass_unchanged(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, storage_errors(tmp_path):
        raise error
    assert caught.value is error


def fill(root: Path, files: Mapping[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


FILES = {"a.bin": "1", "deep/b.bin": "2", "deep/empty": ""}


@pytest.mark.parametrize(
    "changes",
    [
        {"a.bin": "3"},
        {"c.bin": "1"},
        {"deep/page/x": "1"},
        {"deep/empty": "0"},
        {"paged/x": ""},
    ],
)
def test_digest_changes_with_names_and_bytes(tmp_path: Path, changes: dict[str, str]) -> None:
    plain = fill(tmp_path / "one", FILES)
    other = fill(tmp_path / "two", {**FILES, **changes})
    assert digest_directory(plain) != digest_directory(other)


def test_digest_tells_swapped_contents_and_moved_files_apart(tmp_path: Path) -> None:
    variants = [{"a": "1", "b": "2"}, {"a": "2", "b": "1"}, {"a": "12"}, {"d/a": "1", "b": "2"}]
    digests = {
        digest_directory(fill(tmp_path / str(number), files))
        for number, files in enumerate(variants)
    }
    assert len(digests) == len(variants)


def test_digest_ignores_pages_states_markers_and_halves(tmp_path: Path) -> None:
    plain = fill(tmp_path / "one", FILES)
    other = fill(
        tmp_path / "two",
        {
            **dict(reversed(FILES.items())),
            "page/00.json": "x",
            "state/step_1/weights": "x",
            "started.json": "x",
            "finished.json": "x",
            "half.bin.partial": "x",
            "half.partial/weights": "x",
        },
    )
    assert digest_directory(plain) == digest_directory(other)


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"[1]", b"3"])
def test_read_json_takes_no_other_content_for_a_marker(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "marker.json").write_bytes(content)
    assert read_json(tmp_path / "marker.json") is None
    assert read_json(tmp_path / "marker.json" / "below") is None
    assert read_json(tmp_path / "missing.json") is None


def test_write_json_is_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "marker.json", {"name": "β", "values": [1, None]})
    assert read_json(tmp_path / "deep" / "marker.json") == {"name": "β", "values": [1, None]}


def test_finished_marker_tells_what_was_made(run: Path) -> None:
    start(chain(), run)
    finished = json.loads((run / "b" / "finished.json").read_text())
    upstream = json.loads((run / "a" / "finished.json").read_text())
    assert finished["inputs"] == {"x": upstream["output_digest"]}
    assert finished["config"] == {"text": "b", "repeat": 1, "unused": 0, "threads": 1}
    assert finished["seconds"] >= 0
    assert not (run / "b" / "started.json").exists()
