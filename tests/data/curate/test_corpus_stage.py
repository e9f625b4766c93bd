import json
from collections.abc import Callable
from pathlib import Path

import pytest
from data_builder import silent_track

from fivefold.config import hash_config
from fivefold.data.code.config import CodeConfig, PackConfig, TierConfig
from fivefold.data.config import MixtureConfig, TokenizerTrainingConfig, TokensConfig
from fivefold.data.corpus_config import CurateStageConfig, OwnClassifierConfig
from fivefold.data.corpus_stage import CurateStage, count_kept, group_by_name, recipe_table
from fivefold.data.curate.account import Account
from fivefold.data.curate.benchmark_source import benchmark_folder
from fivefold.data.curate.config import (
    ClassifierTrainingConfig,
    CurateConfig,
    HeuristicsConfig,
)
from fivefold.data.curate.sample import sample_shards
from fivefold.data.curate.shard import find_shards
from fivefold.data.document import Document, document_id, document_writer, read_documents
from fivefold.data.loader import open_loader
from fivefold.data.long.config import IndexConfig, LongConfig, NextLongConfig
from fivefold.data.maths.config import MathsConfig, SelectConfig
from fivefold.data.packed_source import open_sources
from fivefold.data.stages import TokenizerStage, TokensStage
from fivefold.data.web.config import ReferenceConfig, WebConfig
from fivefold.errors import ConfigError
from fivefold.metrics import StageMetrics, read_metrics
from fivefold.recipes.own_benchmark import own_items
from fivefold.stage import Selection, Stage, StageContext, run_stages
from fivefold.text.config import TokenizerConfig
from fivefold.text.tokenizer import load_tokenizer

PAGES = CurateConfig(tasks=2)


def run(folder: Path, config: CurateStageConfig, tokens: TokensConfig | None = None) -> Path:
    """Run the corpus alone, or with tokenizer and tokens behind it."""
    folder.mkdir()
    stages: list[Stage] = [CurateStage("corpus", config)]
    if tokens:
        training = TokenizerTrainingConfig(tokenizer=TokenizerConfig(vocab_size=600))
        stages += [
            TokenizerStage("tokenizer", training, {"corpus": "corpus"}),
            TokensStage("tokens", tokens, {"corpus": "corpus", "tokenizer": "tokenizer"}),
        ]
    metrics = folder / "metrics.jsonl"
    run_stages(
        stages,
        folder,
        Selection(),
        lambda stage: StageContext(0, "cpu", 1, StageMetrics(metrics, stage.name), silent_track),
    )
    return folder


@pytest.fixture
def files(tmp_path: Path, english: Callable[[int], str]) -> tuple[str, ...]:
    """Two sites whose pages' hashes interleave; one page of the second is a copy."""
    for site, numbers in (("one", range(12)), ("two", range(11, 22))):
        (tmp_path / site).mkdir()
        for number in numbers:
            body = "".join(f"<p>{line}</p>" for line in english(number).split("\n"))
            page = f"<html><body>{body}</body></html>"
            (tmp_path / site / f"{number}.html").write_text(page)
    return str(tmp_path / "one"), str(tmp_path / "two")


def test_curated_pages_go_on_to_tokens_unchanged(tmp_path: Path, files: tuple[str, ...]):
    config = CurateStageConfig(files=files, dclm_baseline=PAGES, heldout_bytes=2000)
    finished = run(tmp_path / "run", config, TokensConfig(contexts=(64,)))
    tokenizer = load_tokenizer(finished / "tokenizer")
    texts: dict[str, dict[str, list[str]]] = {}
    for split in ("train", "heldout"):
        texts[split] = {}
        for document in read_documents(finished / "corpus" / f"{split}.jsonl.zst"):
            texts[split].setdefault(document.source, []).append(document.text)
        for source in open_sources(finished / "tokens", 64, split, verify=True):
            ids = [
                source.tokens.document(n).tolist() for n in range(source.tokens.manifest.documents)
            ]
            assert [tokenizer.decode(one[2:-1]) for one in ids] == texts[split][source.name]
    assert sum(len(some) for split in texts.values() for some in split.values()) == 22
    assert set(texts["train"]) == {"one", "two"}
    assert texts["heldout"]
    corpus = finished / "corpus"
    facts = json.loads((corpus / "sources.json").read_text())
    assert sum(source["documents"] for source in facts["sources"]) == 22
    accounts = json.loads((corpus / "accounts.json").read_text())["dclm_baseline"]
    assert accounts["duplicates"]["drops"] == {"duplicate.exact": 1}
    assert (corpus / "page" / "001_funnel_dclm_baseline.json").is_file()
    assert not (corpus / "state").exists()
    written = [row for row in read_metrics(finished / "metrics.jsonl") if row["stage"] == "corpus"]
    assert written[-1]["data/raw_pages"] == 23


def test_a_benchmark_that_is_fetched_later_makes_another_corpus(
    tmp_path: Path, files: tuple[str, ...], caplog: pytest.LogCaptureFixture
):
    config = CurateStageConfig(files=files, dclm_baseline=PAGES, cache_dir=str(tmp_path / "cache"))
    without = config.model_copy(
        update={"dclm_baseline": PAGES.model_copy(update={"benchmarks": None}), "glm5_code": None}
    )

    def hashes() -> list[str]:
        return [hash_config(CurateStage("corpus", one).config) for one in (config, without)]

    before = hashes()
    assert hashes() == before
    rows = benchmark_folder("gsm8k", str(tmp_path / "cache")) / "rows.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text(json.dumps({"question": "How many of the nine hens lay two eggs each day?"}))
    after = hashes()
    assert [a == b for a, b in zip(after, before, strict=True)] == [False, True]
    stage = CurateStage("corpus", config)
    assert hash_config(stage.with_config(stage.config).config) == after[0]


def test_the_place_of_the_work_does_not_change_the_result(tmp_path: Path, files: tuple[str, ...]):
    digests = []
    rows = benchmark_folder("gsm8k", str(tmp_path / "cache")) / "rows.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text(json.dumps({"question": "How many of the nine hens lay two eggs each day?"}))
    own = OwnClassifierConfig(
        positive=("one",),
        keep_share=0.5,
        training=ClassifierTrainingConfig(dim=10, heldout_share=0.4, buckets=1000),
    )
    for name, work in (("a", ""), ("b", str(tmp_path / "work")), ("c", str(tmp_path / "work"))):
        config = CurateStageConfig(
            files=files,
            dclm_baseline=PAGES,
            classifier=own,
            work_dir=work,
            heldout_bytes=2000,
            cache_dir=str(tmp_path / "cache"),
        )
        marker = run(tmp_path / name, config) / "corpus" / "finished.json"
        digests.append(json.loads(marker.read_text())["output_digest"])
    assert len(set(digests)) == 1
    # The choice by quality goes on from what is there, benchmarks included.
    for stage in ("extract", "decontaminate"):
        assert len(list((tmp_path / "work" / "dclm_baseline").glob(f"{stage}-*"))) == 1
    looked_for = json.loads((tmp_path / "a" / "corpus" / "benchmarks.json").read_text())["counts"]
    assert looked_for["gsm8k"]["items"] == 1
    assert looked_for["own.sort"]["items"] == sum(
        one.benchmark == "own.sort" for one in own_items()
    )
    block = json.loads((tmp_path / "a" / "corpus" / "page" / "16_benchmarks.json").read_text())
    assert ["gsm8k", 1, 1, 0, 0] in block["rows"]
    assert "Not in the cache, so not looked for: aime_2024" in block["note"]
    assert "gsm8k" not in block["note"]
    accounts = json.loads((tmp_path / "a" / "corpus" / "accounts.json").read_text())
    quality = accounts["dclm_baseline"]["quality"]
    assert (quality["documents_in"], quality["documents_out"]) == (22, 11)


def test_nothing_left_is_said_with_the_way_to_look(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.html").write_text("<p>Too short.</p>")
    config = CurateStageConfig(files=(str(tmp_path / "in"),), dclm_baseline=PAGES)
    with pytest.raises(ConfigError, match="1 pages read by dclm_baseline, all dropped"):
        run(tmp_path / "run", config)


def repositories(folder: Path, count: int) -> tuple[str, ...]:
    """Small projects whose modules are all different and pass every rule."""
    names = ("river", "mill", "bridge", "orchard", "lamp", "stone", "glass", "copper", "cloud")
    for number in range(count):
        for module in range(4):
            lines = [f'"""Module {module} of project {number}: {names[number % 9]}s and more."""\n']
            for k, name in enumerate(names):
                lines.append(
                    f"\n\ndef find_{name}_{number}_{module}(place, size={k + number}):\n"
                    f'    """Return the {name} that stands at a place."""\n'
                    f"    total = place * {k + 2} + size - {module}\n"
                    f"    for step in range(size):\n        total += step % {number + 3}\n"
                    f"    return total\n"
                )
            path = folder / f"project{number}" / f"module{module}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines))
    return tuple(str(folder / f"project{number}") for number in range(count))


def test_code_pages_and_long_sequences_stand_beside_each_other(
    tmp_path: Path, files: tuple[str, ...]
):
    """Marks become special tokens, long sequences hold training text alone, code is not divided."""
    config = CurateStageConfig(
        files=files,
        repositories=repositories(tmp_path / "code", 8),
        dclm_baseline=PAGES,
        glm5_code=CodeConfig(
            heuristics=None,
            minhash=None,
            classifier=None,
            tiers=TierConfig(high_epochs=1.0, low_epochs=1.0),
            pack=PackConfig(max_characters=4000),
            tasks=1,
        ),
        midtrain_long=LongConfig(
            context_tokens=512,
            index=IndexConfig(chunk_tokens=64, max_document_share=1.0),
            nextlong=NextLongConfig(min_root_tokens=64, min_similarity=0.0),
            natural=None,
            entropylong=None,
            interleave=None,
            mrcr=None,
            repository=None,
            tasks=1,
        ),
        heldout_bytes=20_000,
        heldout_share=0.3,
    )
    tokens = TokensConfig(
        contexts=(64, 512),
        long_contexts=(512,),
        mixture=MixtureConfig(max_epochs=4),
    )
    finished = run(tmp_path / "run", config, tokens)
    corpus, tokenizer = finished / "corpus", load_tokenizer(finished / "tokenizer")
    train, heldout = (
        list(read_documents(corpus / f"{split}.jsonl.zst")) for split in ("train", "heldout")
    )
    code = [one for one in train if one.source == "code"]
    assert any(one.meta["marks"] for one in code)
    assert not any(one.meta.get("marks") for one in heldout)
    sides = [
        {one.meta["repository"] for one in side if one.source == "code"}
        for side in (train, heldout)
    ]
    assert sides[1]
    assert not sides[0] & sides[1]
    marks = {tokenizer.id_of(f"<|code_{name}|>") for name in ("prefix", "middle", "suffix")}
    (source,) = [s for s in open_sources(finished / "tokens", 64) if s.name == "code"]
    for number, document in enumerate(code):
        ids = source.tokens.document(number).tolist()[2:-1]
        assert tokenizer.decode(ids) == document.text
        assert sum(one in marks for one in ids) == len(document.meta["marks"])
    made = list(read_documents(corpus / "long.jsonl.zst"))
    assert made
    assert {one.source for one in made} == {"nextlong"}
    secrets = [line for one in heldout for line in one.text.split("\n") if len(line) > 60]
    assert secrets
    assert not any(line in one.text for line in secrets for one in made)
    mixture = MixtureConfig(shares={"long": 0.5})
    loader = open_loader(finished / "tokens", 512, seed=0, mixture=mixture)
    assert "nextlong.long" in loader.sources
    names = open_loader(finished / "tokens", 64, seed=0).sources
    assert set(names) == {"code", "one", "two"}


def test_tiers_become_sources_of_the_mixture(tmp_path: Path, english: Callable[[int], str]):
    """The rows come in any order and leave sorted by source and tier."""
    folder = tmp_path / "in"
    folder.mkdir()
    with document_writer(folder / "rows.jsonl.zst") as append:
        for number in range(24):
            tier, epochs = ("high", 3.0) if number % 3 else ("low", 0.5)
            meta = {"tier": tier, "epochs": epochs}
            name = document_id("web", str(number))
            append(Document(name, english(number), "web", str(number), "en", meta))
    pages = PAGES.model_copy(update={"heuristics": HeuristicsConfig()})
    config = CurateStageConfig(files=(str(folder),), dclm_baseline=pages, heldout_bytes=0)
    finished = run(tmp_path / "run", config, TokensConfig(contexts=(64,)))
    tiers = json.loads((finished / "corpus" / "tiers.json").read_text())
    assert {name: (one["documents"], one["epochs"]) for name, one in tiers.items()} == {
        "high": (16, 3.0),
        "low": (8, 0.5),
    }
    sources = {one.name: one for one in open_sources(finished / "tokens", 64)}
    assert {name: one.epochs for name, one in sources.items()} == {"web@high": 3.0, "web@low": 0.5}
    loader = open_loader(finished / "tokens", 64, seed=0)
    loader.next_rows(300)
    high, low = (loader.epochs[name] for name in ("web@high", "web@low"))
    assert high / low == pytest.approx(6, rel=0.1)


def test_a_sample_of_a_package_is_the_beginning_of_its_hashed_order(
    tmp_path: Path, make_deb: Callable[..., Path]
):
    pages = {f"usr/{n}.html": b"<p>%d</p>" % n * 50 for n in range(40)}
    shards = find_shards([make_deb(pages)])
    (whole,), (part,), (same,) = (
        sample_shards(shards, size, tmp_path / name)
        for name, size in (("all", 10**6), ("part", 3000), ("none", None))
    )
    assert same is shards[0]
    from fivefold.data.archive import read_members

    read = {one.path: list(read_members(one.path, one.members)) for one in (same, whole, part)}
    assert read[whole.path] == read[same.path]
    sizes = [len(content) for _, content in read[part.path]]
    assert sum(sizes[:-1]) < 3000 <= sum(sizes)
    assert set(read[part.path]) <= set(read[same.path])
    again = sample_shards(shards, 3000, tmp_path / "again")[0]
    assert again.path.read_bytes() == part.path.read_bytes()


def test_groups_are_ordered_by_name_whatever_comes_first(tmp_path: Path):
    files = []
    for number, source in enumerate("cab"):
        path = tmp_path / f"{number}.jsonl.zst"
        with document_writer(path) as append:
            append(Document(source, source, source))
        files.append(path)
    names = [next(read_documents(one)).source for one in group_by_name(files, tmp_path / "s")]
    assert names == ["a", "b", "c"]


def test_every_recipe_has_its_field():
    fields = CurateStageConfig.model_fields
    assert set(recipe_table()) <= set(fields)


def test_pages_in_tiers_come_from_the_web_and_the_maths_recipe(
    tmp_path: Path, files: tuple[str, ...], english: Callable[[int], str]
):
    good = tmp_path / "good.jsonl.zst"
    with document_writer(good) as append:
        for number in range(1000, 1040):
            append(Document(str(number), english(number), "good", str(number)))
    parts = {
        "glm5_web": WebConfig(
            tasks=2,
            reference=ReferenceConfig(quality=(str(good),)),
            training=ClassifierTrainingConfig(dim=10, buckets=1000, heldout_share=0.4),
            embedding=None,
            knowledge=None,
        ),
        "glm5_math": MathsConfig(
            tasks=2, admit=None, templates=None, machine_text=None, select=SelectConfig()
        ),
    }
    # Pages without any maths have the same mark, and so one tier.
    expected = {"glm5_web": {"top", "high", "middle"}, "glm5_math": {"high"}}
    for name, part in parts.items():
        config = CurateStageConfig.model_validate(
            {"files": files, "dclm_baseline": None, "heldout_bytes": 0, name: part}
        )
        corpus = run(tmp_path / name, config) / "corpus"
        train = list(read_documents(corpus / "train.jsonl.zst"))
        tiers = json.loads((corpus / "tiers.json").read_text())
        assert set(tiers) == {one.meta["tier"] for one in train} == expected[name]
        for tier, facts in tiers.items():
            mine = [one for one in train if one.meta["tier"] == tier]
            assert facts["documents"] == len(mine)
            assert {one.meta["epochs"] for one in mine} == {facts["epochs"]}
        assert list(json.loads((corpus / "accounts.json").read_text())) == [name]


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ({"extract": 9, "dedup": 7}, 7),
        ({"admit": 9, "select": 8, "pack": 6, "issues": 3, "issue_benchmarks": 2}, 6),
        ({"extract": 9, "unique": 8, "nextlong": 5, "mrcr": 1}, 8),
    ],
)
def test_what_stays_is_counted_in_pages_or_files(steps: dict[str, int], kept: int):
    assert count_kept({name: Account(documents_out=out) for name, out in steps.items()}) == kept
