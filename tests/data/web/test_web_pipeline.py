"""The whole of glm5_web on files: who is chosen, added, rescued; order, workers, kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from web_builder import (
    documents,
    entry,
    help_page,
    prose,
    sale,
    small_config,
    write_references,
    write_rows,
)

from fivefold.__main__ import main
from fivefold.artifact import digest_directory, read_json
from fivefold.data.curate.account import QuarantineError
from fivefold.data.curate.dclm_baseline import Curated
from fivefold.data.curate.shard import find_shards
from fivefold.data.document import Document, read_documents
from fivefold.data.web.config import ReferenceConfig, WebConfig
from fivefold.data.web.glm5_web import find_needed, run_glm5_web, web_stage_folders
from fivefold.errors import FivefoldError

LOOSE = {"knowledge": {"site_share": 1.0, "share": 0.3, "rescue_from": ["high", "middle", "fair"]}}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ReferenceConfig:
    return write_references(tmp_path_factory.mktemp("reference"))


def crawl() -> list[Document]:
    """Sales talk, prose and help, and pages that state facts."""
    return [
        *documents(sale, 60, "sale"),
        *documents(prose, 20, "prose"),
        *documents(help_page, 20, "help", 300),
        *documents(entry, 10, "entries"),
    ]


def shards_of(folder: Path, rows: Sequence[Document], shards: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    return [
        write_rows(folder / f"{shard}.jsonl.zst", rows[shard::shards]) for shard in range(shards)
    ]


def curate(files: Sequence[Path], config: WebConfig, out: Path) -> Curated:
    return run_glm5_web(find_shards(files), config, out)


def rows_of(files: Sequence[Path]) -> list[Document]:
    return [one for file in files for one in read_documents(file)]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, reference: ReferenceConfig
) -> tuple[Path, Curated, WebConfig]:
    folder = tmp_path_factory.mktemp("run")
    config = small_config(reference, **LOOSE)
    return folder, curate(shards_of(folder, crawl(), 2), config, folder / "out"), config


def test_good_pages_are_chosen_and_every_document_is_accounted_for(
    finished: tuple[Path, Curated, WebConfig],
):
    folder, curated, config = finished
    kept = rows_of(curated.documents)
    tiers = json.loads((folder / "out/tiers.json").read_text())
    epochs = {tier.name: tier.epochs for tier in config.tiers} | {"knowledge": 1.0}
    for one in kept:
        assert one.meta["epochs"] == epochs[one.meta["tier"]] > 0
    for name, tier in tiers.items():
        own = [one for one in kept if one.meta["tier"] == name]
        assert tier["documents"] == len(own)
        assert tier["bytes"] == sum(len(one.text.encode()) for one in own)
        assert tier["epochs"] == epochs[name]
    top = [one.source for one in kept if one.meta["tier"] == "top"]
    assert top.count("prose") >= 0.9 * (len(top) - top.count("entries"))
    account = curated.accounts["tiers"]
    assert account.documents_in == 110
    assert account.documents_in == account.documents_out + sum(account.drops.values())
    assert "sale" not in {one.source for one in kept if one.meta["tier"] in ("top", "knowledge")}


def test_the_ensemble_adds_to_what_fasttext_chose_and_facts_are_rescued_without_it(
    finished: tuple[Path, Curated, WebConfig],
):
    folder, curated, config = finished
    plan = read_json(folder / "out/plan.json")
    assert plan
    added = plan["added_by_embedding"]
    assert added == curated.accounts["tiers"].edits["tier.added"] > 0
    assert plan["tiers"]["top"]["documents"] == plan["chosen_by_fasttext"] + added
    assert added <= config.embedding.max_added * plan["chosen_by_fasttext"]  # type: ignore[union-attr]
    alone = config.model_copy(update={"embedding": None})
    before = curate(sorted(folder.glob("*.jsonl.zst")), alone, folder / "out")
    assert before.accounts["tiers"].edits["tier.rescued"] == sum(
        one.meta["tier"] == "knowledge" for one in rows_of(before.documents)
    )
    rescued = [one for one in rows_of(before.documents) if one.meta["tier"] == "knowledge"]
    assert {one.source for one in rescued} == {"entries"}
    own = {one.id for one in rows_of(before.documents) if one.meta["tier"] == "top"}
    assert own < {one.id for one in rows_of(curated.documents) if one.meta["tier"] == "top"}


def test_side_files_hold_what_was_decided(finished: tuple[Path, Curated, WebConfig]):
    folder, curated, config = finished
    files = find_shards(sorted(folder.glob("*.jsonl.zst")))
    folders = web_stage_folders(files, find_needed(config), config, folder / "out")
    (path,) = folders["tier"].glob("*.parquet")
    rows = {row["id"]: row for row in parquet.read_table(path).to_pylist()}
    assert len(rows) == 110
    for one in rows_of(curated.documents):
        assert rows[one.id]["tier"] == one.meta["tier"]
        assert rows[one.id]["epochs"] == one.meta["epochs"]
    ranks = np.array([row["quality_percentile"] for row in rows.values()])
    assert abs((ranks >= 0.9).mean() - 0.1) < 0.03


def test_other_tiers_ask_no_model_again(finished: tuple[Path, Curated, WebConfig], tmp_path: Path):
    folder, _, config = finished
    out = folder / "out"
    before = {p: p.stat().st_mtime_ns for p in out.glob("*-*/**/*") if p.is_file()}
    tiers = [tier.model_copy(update={"epochs": 1.0}) for tier in config.tiers]
    other = config.model_copy(update={"tiers": tuple(tiers), "knowledge": config.knowledge})
    everything = curate(sorted(folder.glob("*.jsonl.zst")), other, out)
    assert everything.summary.documents == 110
    after = {p: p.stat().st_mtime_ns for p in out.glob("*-*/**/*") if p.is_file()}
    assert {p: after[p] for p in before} == before
    new = {p.relative_to(out).parts[0].partition("-")[0] for p in after.keys() - before.keys()}
    assert new == {"tier", "select"}


@pytest.mark.parametrize(("shards", "tasks", "workers"), [(1, 1, 1), (5, 2, 2)])
def test_result_depends_on_documents_alone(
    finished: tuple[Path, Curated, WebConfig], tmp_path: Path, shards: int, tasks: int, workers: int
):
    _, expected, config = finished
    other = config.model_copy(update={"tasks": tasks, "workers": workers})
    result = curate(shards_of(tmp_path / "in", crawl()[::-1], shards), other, tmp_path / "out")
    assert [file.read_bytes() for file in result.documents] == [
        file.read_bytes() for file in expected.documents
    ]
    assert result.accounts["tiers"].to_json() == expected.accounts["tiers"].to_json()


def test_only_a_sample_is_embedded(reference: ReferenceConfig, tmp_path: Path):
    config = small_config(reference, most_embedded=40, **LOOSE)
    curated = curate(shards_of(tmp_path / "in", crawl(), 2), config, tmp_path / "out")
    plan = read_json(tmp_path / "out/plan.json")
    assert plan
    assert plan["embedded"] == 40
    assert curated.accounts["tiers"].documents_in == 110


def test_an_earlier_runs_models_and_percentiles_hold(
    finished: tuple[Path, Curated, WebConfig], tmp_path: Path
):
    folder, _, config = finished
    files = find_shards(sorted(folder.glob("*.jsonl.zst")))
    folders = web_stage_folders(files, find_needed(config), config, folder / "out")
    learned = folders["learn"]
    given = config.model_dump() | {
        "classifier": {"model": str(folders["learn_quality"] / "half-0/model.bin")},
        "embedding": {"model": str(learned / "embedding")},
        "knowledge": {"model": str(learned / "world_knowledge"), **LOOSE["knowledge"]},
        "reference": {"quality": ["nowhere"], "knowledge": ["nowhere"], "plain": ["nowhere"]},
    }
    curate([shard.path for shard in files], WebConfig.model_validate(given), tmp_path / "a")
    given["quantiles"] = str(tmp_path / "a/plan.json")
    few = crawl()[::3]
    curate(shards_of(tmp_path / "in", few, 1), WebConfig.model_validate(given), tmp_path / "b")
    whole, part = percentiles_of(tmp_path / "a"), percentiles_of(tmp_path / "b")
    assert part == {one.id: whole[one.id] for one in few}


def test_a_model_that_is_no_longer_given_is_learned(reference: ReferenceConfig, tmp_path: Path):
    files, out = shards_of(tmp_path / "in", crawl(), 1), tmp_path / "out"
    config = small_config(reference)
    without = small_config(reference, embedding=None)
    curate(files, without, out)
    curate(files, config, out)
    learned = web_stage_folders(find_shards(files), find_needed(config), config, out)["learn"]
    folders = []
    for field, kind in (("embedding", "embedding"), ("knowledge", "world_knowledge")):
        given = small_config(reference, **{field: {"model": str(learned / kind)}})
        folders.append(web_stage_folders([], {}, given, out)["learn"])
    folders += [web_stage_folders([], {}, one, out)["learn"] for one in (config, without)]
    assert len(set(folders[:3])) == 3
    # Neither learns the classifier of quality over vectors.
    assert folders[3] == folders[0]


def percentiles_of(out: Path) -> dict[str, float]:
    (path,) = out.glob("tier-*/*.parquet")
    return {row["id"]: row["quality_percentile"] for row in parquet.read_table(path).to_pylist()}


def test_a_model_that_fails_on_a_page_quarantines_it(
    reference: ReferenceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from fivefold.data.web import score_step

    ask = score_step._ask

    def fail(some: list[Document], models: object) -> np.ndarray:
        if any(one.url == "7" and one.source == "sale" for one in some):
            raise ValueError("poisoned")
        return ask(some, models)  # type: ignore[arg-type]

    # A broken model: no real text makes ours fail.
    monkeypatch.setattr(score_step, "_ask", fail)
    files = shards_of(tmp_path / "in", crawl(), 1)
    curated = curate(files, small_config(reference, max_quarantined=0.05), tmp_path / "out")
    account = curated.accounts["tiers"]
    assert [one["url"] for one in account.quarantined] == ["7"]
    assert 'raise ValueError("poisoned")' in account.quarantined[0]["trace"]
    assert account.documents_in == 110
    with pytest.raises(QuarantineError, match="ValueError: poisoned"):
        curate(files, small_config(reference), tmp_path / "out")


def test_a_dead_endpoint_ends_the_run(reference: ReferenceConfig, tmp_path: Path):
    config = small_config(reference, embed={"url": "http://127.0.0.1:9", "model": "m"})
    with pytest.raises(FivefoldError, match=r"127\.0\.0\.1"):
        curate(shards_of(tmp_path / "in", crawl(), 1), config, tmp_path / "out")


def test_the_commands_train_run_and_show(
    reference: ReferenceConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def fivefold(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["fivefold", "data", *arguments])
        main()
        return capsys.readouterr().out

    monkeypatch.setenv("COLUMNS", "120")
    files = [str(path) for path in shards_of(tmp_path / "in", crawl(), 2)]
    trained = fivefold(
        "train-classifier", "embed.dimensions=128", "head.folds=3", "--kind", "world_knowledge",
        "--positive", *reference.knowledge, "--negative", *reference.plain,
        "--out", str(tmp_path / "facts"),
    )  # fmt: skip
    assert "40 positive and 160 negative documents; AUC 1.0000" in trained
    quoted = [f"reference.quality={json.dumps(reference.quality)}", "embedding=null"]
    run = fivefold(
        "run", "glm5_web", *files, *quoted, f"knowledge.model={tmp_path / 'facts'}", "url=null",
        "language=null", "heuristics=null", "tasks=2", "training.dim=20", "head.max_documents=60",
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert "Tiers" in run
    stats = fivefold("stats", str(tmp_path / "run"))
    assert "tier.low" in stats
    assert "MB seen" in stats
    shown = fivefold("inspect", str(tmp_path / "run"), "--dropped-by", "tier.low", "-n", "2")
    assert "for `tier.low`; 2 shown" in shown


@pytest.mark.slow
def test_killed_command_goes_on_with_other_workers_to_the_same_bytes(
    reference: ReferenceConfig, tmp_path: Path
):
    files = shards_of(tmp_path / "in", crawl(), 3)
    quoted = [f"reference.{k}={json.dumps(v)}" for k, v in reference.model_dump().items()]
    digests = []
    for name, kills in (("whole", 0), ("killed", 4)):
        out = tmp_path / name
        for attempt in range(kills + 1):
            command = [
                sys.executable, "-m", "fivefold", "data", "run", "glm5_web", *map(str, files),
                "url=null", "language=null", "heuristics=null", "tasks=3", "head.folds=3",
                "training.dim=20", "training.buckets=2000", *quoted,
                "--out", str(out), "--workers", str(1 + attempt % 2),
            ]  # fmt: skip
            process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
            if attempt < kills:
                wanted = 4 * (attempt + 1)
                while len(list(out.glob("*/log/completions/*"))) < wanted:
                    assert process.poll() is None, "the run ended before it was killed"
                    time.sleep(0.005)
                os.killpg(process.pid, signal.SIGKILL)
                assert process.wait() == -signal.SIGKILL
            else:
                assert process.wait() == 0
        digests.append((digest_directory(out / "documents"), (out / "tiers.json").read_bytes()))
    assert digests[0] == digests[1]
