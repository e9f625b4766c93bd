"""The whole code pipeline on repositories: reasons, order, workers, relaunch, restoring files."""

import gzip
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from code_builder import Repository, python_text

from fivefold.data.code.concatenate import PackedFile, pack_repository, unpack
from fivefold.data.code.config import (
    AdmitConfig,
    CodeClassifierConfig,
    CodeConfig,
    FimConfig,
    PackConfig,
    SamplingConfig,
    TierConfig,
)
from fivefold.data.code.glm5_code import run_glm5_code, stage_folders
from fivefold.data.code.metadata import digest_of
from fivefold.data.code.repository import CodeShard, digest_repository, find_repositories
from fivefold.data.code.step import AdmitFiles, ReadRepositories, decode
from fivefold.data.command_line import DATA_COMMANDS
from fivefold.data.curate.account import QuarantineError
from fivefold.data.curate.config import ClassifierTrainingConfig
from fivefold.data.curate.dclm_baseline import Curated
from fivefold.data.curate.extract_step import WriteTask
from fivefold.data.document import Document, read_documents
from fivefold.errors import ConfigError, CorruptFileError, MissingFileError

CONFIG = CodeConfig(tasks=3, classifier=None)
TOKEN = "ghp_" + "aB3dE6gH9jK2mN5pQ8sT" * 2
FIX = "Tables may be without any rows at all now\n\nFixes #3\n"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two git repositories, a folder and rows, with one file for each kind of loss and repair."""
    root = tmp_path_factory.mktemp("sources")
    one = Repository(root / "one")
    files: dict[str, str | bytes] = {f"one/m{i}.py": python_text(i) for i in range(12)}
    files["one/m0.py"] = python_text(0, imports="from one import m5\n")
    one.commit("Begin", files)
    odd: dict[str, str | bytes | None] = {
        "node_modules/a.js": "x\n",
        "one/a.min.js": "x\n",
        "one/empty.py": "",
        "one/blank.py": "\n\n",
        "one/binary.py": b"x = '\0'\n",
        "one/latin.py": b"# \xe9\xe8\n" + python_text(70).encode(),
        "one/cookie.py": b"# coding: latin-1\n# \xe9\xe8\n" + python_text(71).encode(),
        "one/big.py": python_text(72) * 3000,
        "one/strange.bin": "nothing that speaks\n",
        "one/short.py": "x = 1\n",
        "one/named.java": python_text(73),
        "one/key.py": python_text(74) + f'\nKEY = "{TOKEN}"\n',
    }
    one.commit("Odd files", odd)
    one.commit(FIX, {"one/m3.py": python_text(3) + "\n\ndef f(a):\n    b = a\n    return b\n"})
    two = Repository(root / "two")
    two.commit(
        "Begin",
        {
            "two/copy.py": python_text(1),
            "two/near.py": python_text(2) + "# and so on\n",
            **{f"two/n{i}.py": python_text(200 + i) for i in range(8)},
        },
    )
    folder = root / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.py").write_text(python_text(90))
    (folder / "deep" / "a.py").write_text(python_text(91))
    rows = root / "rows.jsonl"
    texts = [python_text(300 + i) for i in range(4)]
    digests = [hashlib.sha1(text.encode()).hexdigest() for text in texts]
    # The contents of the first three are shifted by one; the last one's is nobody's.
    shifted = [texts[1], texts[2], texts[0], python_text(399)]
    declared = ["python", "Python", "ruby", "python"]
    with rows.open("w") as file:
        for i in range(4):
            meta = {"repository": "ann/rows", "path": f"r{i}.py", "sha1": digests[i]}
            row = {"text": shifted[i], "lang": declared[i], "meta": meta}
            file.write(json.dumps(row) + "\n")
    return [one.root, two.root, folder, rows]


def run(sources: Sequence[Path], config: CodeConfig, out: Path) -> Curated:
    return run_glm5_code(find_repositories(sources), config, out)


def documents_of(curated: Curated) -> list[Document]:
    return [one for file in curated.documents for one in read_documents(file)]


@pytest.fixture(scope="module")
def curated(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Curated:
    return run(sources, CONFIG, tmp_path_factory.mktemp("out"))


def test_every_planted_file_goes_or_is_repaired_for_its_reason(curated: Curated):
    drops = {name: dict(account.drops) for name, account in curated.accounts.items()}
    assert drops["admit"] == {
        "admit.folder": 1,
        "admit.name": 1,
        "admit.empty": 2,
        "admit.no_text": 2,
        "admit.too_large": 1,
        "metadata.digest": 1,
    }
    assert drops["language"] == {"language.unknown": 1}
    assert drops["heuristics"] == {"code.few_characters": 1}
    assert drops["duplicates"] == {"duplicate.exact": 1, "duplicate.near": 1}
    edits = {name: dict(account.edits) for name, account in curated.accounts.items()}
    assert edits["admit"] == {"metadata.realigned": 3}
    assert edits["language"] == {"language.declared": 1, "language.overruled": 1}
    assert edits["secrets"] == {"secret.github": 1}
    sample = curated.accounts["secrets"].samples["secret.github"][0]
    assert TOKEN[:8] not in json.dumps(sample)
    assert drops["issues"] == {"issue.no_base": 2, "issue.no_link": 1}
    assert curated.accounts["issues"].documents_out == 1


def test_texts_hold_the_files_to_the_letter(curated: Curated):
    found: dict[str, str] = {}
    copies: Counter[str] = Counter()
    for document in documents_of(curated):
        if document.source == "code":
            assert set(document.meta) == {"repository", "licences", "files", "marks"}
            for path, text in unpack(document):
                name = f"{document.meta['repository']}/{path}"
                assert found.setdefault(name, text) == text
                copies[name] += 1
    expected = {f"one/one/m{i}.py": python_text(i) for i in range(4, 12)}
    expected |= {f"ann/rows/r{i}.py": python_text(300 + i) for i in range(3)}
    expected["one/one/named.java"] = python_text(73)
    expected["one/one/key.py"] = python_text(74) + '\nKEY = "REDACTED_GITHUB"\n'
    kept = {name: text for name, text in found.items() if name in expected}
    assert kept == {name: expected[name] for name in kept}
    assert len(kept) >= 0.6 * len(expected)
    assert len(found) == curated.accounts["pack"].documents_out
    assert max(copies.values()) >= 2
    assert not any("x.py" in name for name in found)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_order_of_sources_tasks_and_workers_change_nothing(
    sources: list[Path], curated: Curated, tmp_path: Path, workers: int
):
    config = CONFIG.model_copy(update={"workers": workers, "tasks": 5})
    again = run(sources[::-1], config, tmp_path)
    expected = sorted((one.id, one.text, str(one.meta)) for one in documents_of(curated))
    assert sorted((one.id, one.text, str(one.meta)) for one in documents_of(again)) == expected
    for name, account in curated.accounts.items():
        assert again.accounts[name].to_json() == account.to_json(), name
    assert again.summary.to_json() == curated.summary.to_json()


def test_a_relaunch_redoes_only_what_is_missing(sources: list[Path], tmp_path: Path):
    first = run(sources, CONFIG, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*-*/documents/*")}
    pack = next(tmp_path.glob("pack-*"))
    (pack / "log" / "completions" / "00001").unlink()
    again = run(sources, CONFIG, tmp_path)
    changed = {
        path.parent.parent.name for path, at in before.items() if path.stat().st_mtime_ns != at
    }
    assert changed == {pack.name}
    assert documents_of(again) == documents_of(first)


def test_changed_config_or_commit_changes_what_is_downstream_only(
    sources: list[Path], tmp_path: Path
):
    shards = find_repositories(sources)
    base = stage_folders(shards, CONFIG, tmp_path)

    def changed(**fields: object) -> list[str]:
        other = stage_folders(shards, CONFIG.model_copy(update=fields), tmp_path)
        return [name for name in base if base[name] != other[name]]

    assert changed(workers=7) == []
    assert changed(pack=PackConfig(max_characters=5000)) == ["pack"]
    assert changed(tiers=TierConfig(low_share=0)) == ["select", "pack"]
    assert changed(issues=None) == ["issues"]
    assert changed(heuristics=None) == list(base)[1:-2]
    # The index of benchmarks hangs on their files alone.
    assert changed(tasks=9) == [name for name in base if name != "benchmarks"]
    digests = [digest_repository(shard, CONFIG.admit) for shard in shards]
    assert len(set(digests)) == len(digests)


def test_parts_can_be_left_out_and_classifiers_taken_in(sources: list[Path], tmp_path: Path):
    bare = CodeConfig(
        tasks=2,
        heuristics=None,
        secrets=None,
        minhash=None,
        classifier=None,
        issues=None,
        benchmarks=None,
    )
    found = run(sources, bare, tmp_path / "bare")
    assert list(found.accounts) == ["admit", "language", "duplicates", "tiers", "sampling", "pack"]
    assert TOKEN in "".join(one.text for one in documents_of(found))
    training = ClassifierTrainingConfig(dim=10, buckets=1000, heldout_share=0.4, epochs=2)
    learner = CodeClassifierConfig(min_labels=4, labelled_share=0.5, training=training)
    config = CodeConfig(tasks=2, issues=None, classifier=learner)
    learned = run(sources, config, tmp_path / "learned")
    assert learned.accounts["pack"].documents_out > 10
    assert next((tmp_path / "learned").glob("learn-*/models/backoff.json")).exists()


def test_too_few_files_to_learn_from_are_named(sources: list[Path], tmp_path: Path):
    with pytest.raises(ConfigError, match="classifier=null"):
        run(sources, CodeConfig(tasks=2, issues=None), tmp_path)


def test_nothing_gives_nothing(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.py").write_text("x = 1\n")
    found = run([tmp_path / "in"], CONFIG, tmp_path / "out")
    assert documents_of(found) == []
    assert found.accounts["heuristics"].drops == {"code.few_characters": 1}
    assert found.accounts["pack"].documents_in == 0


def test_a_file_on_which_a_step_fails_is_quarantined(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(path: str, text: str) -> None:
        raise RuntimeError("no such rule")

    # A rule that is broken: nothing short of breaking one makes the real steps fail.
    monkeypatch.setattr("fivefold.data.code.step.identify", fail)
    with pytest.raises(QuarantineError, match="no such rule"):
        run(sources, CONFIG, tmp_path)


def test_names_of_files_that_are_no_unicode_are_escaped(tmp_path: Path):
    one = Repository(tmp_path / "one")
    one.commit("Begin", {"one/a.py": python_text(1)})
    for number, name in enumerate((b"\xe8.py", b"\xe9.py")):
        Path(os.fsdecode(bytes(one.root / "one") + b"/" + name)).write_text(python_text(2 + number))
    one.commit("Odd names", {"one/b.py": python_text(4)})
    shards = find_repositories([one.root])
    reader = ReadRepositories(shards, AdmitConfig(), tmp_path / "reading", 30)
    admit = AdmitFiles(tmp_path / "accounts", 30)
    list(WriteTask(tmp_path).run(admit.run(reader.run())))
    found = list(read_documents(tmp_path / "00000.jsonl.zst"))
    assert {r"one/\xe8.py", r"one/\xe9.py"} < {one.meta["path"] for one in found}
    assert len({one.id for one in found}) == len(found) == 4


def test_sources_that_are_none_are_named(tmp_path: Path):
    with pytest.raises(MissingFileError, match="no such file"):
        find_repositories([tmp_path / "none"])
    with pytest.raises(MissingFileError, match="none in"):
        find_repositories(["package:no-such-package-is-installed"])
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"ends in \.jsonl"):
        find_repositories([tmp_path / "a.bin"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="source files"):
        find_repositories([tmp_path / "empty"])
    shard = CodeShard(Repository(tmp_path / "bare").root, "bare", "git")
    with pytest.raises(CorruptFileError, match="rev-parse"):
        digest_repository(shard, CONFIG.admit)


def test_installed_packages_are_checked_against_their_record(tmp_path: Path):
    (tmp_path / "pkg").mkdir()
    good, altered = python_text(1), python_text(2)
    (tmp_path / "pkg" / "a.py").write_text(good)
    (tmp_path / "pkg" / "b.py").write_text(altered + "# altered after it was installed\n")
    notes = tmp_path / "pkg-1.0.dist-info"
    notes.mkdir()
    (notes / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: pkg\nVersion: 1.0\nLicense: MIT\n"
    )
    record = [
        f"pkg/{name},sha256={digest_of(text.encode(), 'sha256-base64')},{len(text)}"
        for name, text in (("a.py", good), ("b.py", altered), ("gone.py", good))
    ]
    record += ["pkg/__pycache__/a.cpython-311.pyc,,", "pkg-1.0.dist-info/RECORD,,"]
    (notes / "RECORD").write_text("\n".join(record) + "\n")
    found = run([tmp_path], CONFIG, tmp_path / "out")
    assert found.accounts["admit"].drops == {"metadata.digest": 1, "admit.missing": 1}
    (document,) = documents_of(found)
    assert unpack(document) == [("pkg/a.py", good)]
    assert document.meta["licences"] == ["MIT"]


def test_a_file_that_changed_under_an_old_record_is_noticed(tmp_path: Path):
    (tmp_path / "pkg").mkdir()
    code, large = tmp_path / "pkg" / "a.py", tmp_path / "pkg" / "lib.so"
    code.write_text(python_text(1))
    large.write_bytes(b"x" * (CONFIG.admit.max_file_bytes + 1))
    notes = tmp_path / "pkg-1.0.dist-info"
    notes.mkdir()
    (notes / "METADATA").write_text("Metadata-Version: 2.1\nName: pkg\nVersion: 1.0\n")
    (notes / "RECORD").write_text("pkg/a.py,,\npkg/lib.so,,\npkg-1.0.dist-info/RECORD,,\n")
    (shard,) = find_repositories([tmp_path])

    def digest() -> str:
        return digest_repository(shard, CONFIG.admit)

    first, times = digest(), code.stat()
    # What is not read is not hashed either: its size is enough.
    large.write_bytes(b"y" * (CONFIG.admit.max_file_bytes + 1))
    assert digest() == first
    code.write_text(python_text(1).replace("a", "b", 1))
    os.utime(code, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert code.stat().st_size == times.st_size
    second = digest()
    code.unlink()
    assert len({first, second, digest()}) == 3


def test_a_bad_row_is_counted_and_the_others_are_read(tmp_path: Path):
    good = [
        json.dumps({"text": python_text(n), "meta": {"repository": "a/b", "path": f"m{n}.py"}})
        for n in range(3)
    ]
    lines = ["{cut", good[0], '{"no": "text"}', *good[1:]]
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    found = run([tmp_path], CONFIG, tmp_path / "out")
    admit = found.accounts["admit"]
    assert admit.drops == {"admit.bad_row": 2}
    assert {one["url"] for one in admit.samples["admit.bad_row"]} == {
        "rows/rows.jsonl.gz#1",
        "rows/rows.jsonl.gz#3",
    }
    assert admit.documents_out == 3
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b"{cut\n{cut\n"))
    with pytest.raises(CorruptFileError, match="line 1"):
        run([tmp_path / "rows.jsonl.gz"], CONFIG, tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a\r\nb\rc\n", "a\nb\nc\n"),
        (b"\xef\xbb\xbfa\n", "a\n"),
        ("\ufeffé\n".encode("utf-16-le"), "é\n"),
        (b"# coding: latin-1\n\xe9\n", "# coding: latin-1\né\n"),
        (b"\n# -*- coding=cp1252 -*-\n\x80\n", "\n# -*- coding=cp1252 -*-\n€\n"),
        (b"\xe9\n", None),
        (b"# coding: no-such-code\n\xe9\n", None),
        (b"a\0b", None),
    ],
)
def test_bytes_to_text(content: bytes, text: str | None):
    assert decode(content) == text


def test_budgets_cut_between_files_and_editions_have_other_cuts():
    files = [
        PackedFile(str(i), f"m{i}.py", "python", python_text(i), copies=2 + i % 2) for i in range(6)
    ]
    config = PackConfig(max_characters=3000, fim=FimConfig(rate=1.0))
    packed = list(pack_repository("site", files, config))
    restored = Counter(pair for document in packed for pair in unpack(document))
    assert restored == {(file.path, file.text): file.copies for file in files}
    for document in packed:
        assert len(document.text) < 3000 or len(document.meta["files"]) == 1
        assert document.text.startswith("<repository> site\n<file> m")
    assert (
        len({document.text for document in packed})
        == len({one.id for one in packed})
        == len(packed)
    )


def test_copies_are_sampled_and_imports_come_first(sources: list[Path], tmp_path: Path):
    config = CONFIG.model_copy(
        update={
            "tiers": TierConfig(low_share=0, high_share=0, mid_epochs=3.0),
            "sampling": SamplingConfig(max_epochs=3.0),
        }
    )
    found = run(sources, config, tmp_path)
    files = sum(len(one.meta.get("files", ())) for one in documents_of(found))
    # One language only, so that its weight is one and every file is seen three times.
    assert files == 3 * found.accounts["pack"].documents_out
    assert found.accounts["sampling"].drops == {}
    (whole, *_) = (one for one in documents_of(found) if one.meta.get("repository") == "one")
    paths = [file["path"] for file in whole.meta["files"]]
    assert paths.index("one/m5.py") < paths.index("one/m0.py")


def test_the_command_runs_the_recipe(
    sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = (*map(str, sources), "classifier=null", "tasks=2")
    DATA_COMMANDS["run"]("glm5_code", arguments, out=tmp_path / "run")
    shown = capsys.readouterr().out
    assert "glm5_code: 4 repositories, " in shown
    assert "admit.too_large" in shown
    published = (tmp_path / "run" / "documents").iterdir()
    kinds = {file.name: [one.source for one in read_documents(file)] for file in published}
    assert len(kinds) == 4
    assert all(set(found) <= {name.partition("-")[0]} for name, found in kinds.items())
    assert sum(map(len, kinds.values())) >= 4
    DATA_COMMANDS["inspect"](tmp_path / "run", dropped_by="metadata.digest")
    assert "ann/rows/r3.py" in capsys.readouterr().out
