"""Data sets of the Hub, from a small server of the same interface on this machine."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
import zstandard
from data_builder import silent_track

from fivefold.data.command import get_benchmarks
from fivefold.data.curate.benchmark import find_benchmarks, read_items
from fivefold.data.curate.benchmark_source import BenchmarkSource, cached_benchmarks
from fivefold.data.curate.config import ExtractConfig
from fivefold.data.curate.raw_page import read_texts
from fivefold.data.curate.shard import find_shards
from fivefold.errors import ConfigError, CorruptFileError, DownloadError

COMMIT = "0123abcd"


class Hub:
    """What the server holds, and what it was asked."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.sent: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.address = ""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    rows = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": ["The first.", "The second."]}), rows)
    line = json.dumps({"text": "The third.", "id": "3", "source": "x", "url": "u"}) + "\n"
    hub = Hub({"data/a.parquet": rows.read_bytes(), "b.jsonl": line.encode(), "README.md": b"x"})

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.asked.append(self.path)
            begin = f"/datasets/me/pages/resolve/{COMMIT}/"
            if self.path.startswith("/api/datasets/me/pages/revision/main"):
                siblings = [
                    {
                        "rfilename": name,
                        "size": len(content),
                        "lfs": {"sha256": hashlib.sha256(content).hexdigest()},
                    }
                    for name, content in hub.files.items()
                ]
                self._send(200, json.dumps({"sha": COMMIT, "siblings": siblings}).encode())
            elif (name := self.path.removeprefix(begin)) in hub.files:
                self._send(200, hub.sent.get(name, hub.files[name]))
            else:
                self._send(404, b"{}")

        def _send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield hub
        server.shutdown()
        thread.join()


def texts(cache: Path, address: str, given: str = "hf:me/pages") -> list[str]:
    shards = find_shards([given], str(cache), hub=address)
    return [document.text for document in read_texts(shards, ExtractConfig())]


def test_rows_come_out_and_the_second_time_without_a_network(tmp_path: Path, hub: Hub):
    expected = ["The third.", "The first.", "The second."]
    assert texts(tmp_path / "cache", hub.address) == expected
    assert not any("README" in path for path in hub.asked)
    count = len(hub.asked)
    assert texts(tmp_path / "cache", "http://127.0.0.1:9") == expected
    assert len(hub.asked) == count


def test_a_file_that_changed_in_the_cache_is_fetched_again(tmp_path: Path, hub: Hub):
    expected = texts(tmp_path / "cache", hub.address)
    (path,) = (tmp_path / "cache").rglob("b.jsonl")
    path.write_bytes(b"#" * path.stat().st_size)
    hub.asked.clear()
    assert texts(tmp_path / "cache", hub.address) == expected
    assert [one for one in hub.asked if "resolve" in one] == [
        f"/datasets/me/pages/resolve/{COMMIT}/b.jsonl"
    ]


def test_a_file_that_arrives_altered_is_refused(tmp_path: Path, hub: Hub):
    hub.sent["b.jsonl"] = hub.files["b.jsonl"][:-5]
    with pytest.raises(DownloadError, match=r"b\.jsonl"):
        texts(tmp_path / "cache", hub.address)
    assert not list((tmp_path / "cache").rglob("*b.jsonl"))


def test_what_cannot_be_had_is_named(tmp_path: Path, hub: Hub):
    with pytest.raises(DownloadError, match="404"):
        texts(tmp_path, hub.address, "hf:me/nothing")
    with pytest.raises(DownloadError, match="name their directory instead"):
        texts(tmp_path / "cache", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        texts(tmp_path, hub.address, "hf:../x")
    hub.files = {"README.md": b"x"}
    with pytest.raises(DownloadError, match=r"\.parquet"):
        texts(tmp_path, hub.address)


def test_benchmarks_are_fetched_by_their_members_and_what_is_not_there_stops_no_other(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    row = json.dumps({"question": "How many eggs lay the hens of the farm each day?"}).encode()
    hub.files |= {"main/test.jsonl.zst": zstandard.ZstdCompressor().compress(row)}
    entries = {
        "gone": ("me/nothing", ".*"),
        "empty": ("me/pages", "other/.*"),
        "there": ("me/pages", "main/.*"),
    }
    sources = {
        name: BenchmarkSource("hub", package, 1, "MIT", "eggs", members)
        for name, (package, members) in entries.items()
    }
    for module in ("command", "curate.benchmark_source"):
        monkeypatch.setattr(f"fivefold.data.{module}.BENCHMARKS", sources)
    cache = str(tmp_path / "cache")
    with pytest.raises(DownloadError, match="found 1 of them; without gone, empty; the first") as e:
        get_benchmarks(cache, lambda _: None, silent_track, None, hub.address)
    assert "404" in str(e.value)
    (folder,) = cached_benchmarks(cache).values()
    assert [path.name for path in folder.iterdir()] == ["main--test.jsonl.zst"]
    items = [item for file in find_benchmarks([str(folder)]) for item in read_items(file)]
    assert [item.prompt for item in items] == ["How many eggs lay the hens of the farm each day?"]
    # Where nobody answers, only the first is asked for.
    with pytest.raises(DownloadError, match=r"found 1 of them; without gone, empty"):
        get_benchmarks(cache, lambda _: None, silent_track, None, "http://127.0.0.1:9")


def test_a_cut_benchmark_file_is_named(tmp_path: Path):
    whole = zstandard.ZstdCompressor().compress(b'{"question": "How many eggs?"}' * 9)
    (tmp_path / "a.jsonl.zst").write_bytes(whole[:-3])
    with pytest.raises(CorruptFileError, match=r"zstd frames in .*a\.jsonl\.zst"):
        list(read_items(*find_benchmarks([str(tmp_path)])))


def test_names_that_leave_their_folder_are_refused(tmp_path: Path, hub: Hub):
    hub.files = {"../../evil.jsonl": b"{}"}
    with pytest.raises(DownloadError, match="leave their folder"):
        texts(tmp_path / "cache", hub.address)
