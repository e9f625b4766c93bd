"""Data sets of the Hugging Face Hub as shards: `hf:OWNER/NAME`, `hf:OWNER/NAME@REVISION`.

Their Parquet and JSON-lines files are downloaded as they are, over the Hub's plain HTTP interface,
so that neither scripts of a data set run nor its rows are converted. A file counts as whole when
its size, and its sha256 where the Hub states one, are right; it gets its name only then. What is
whole stays in the cache under the commit that the revision meant, and is used without a network.
"""

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fivefold.artifact import read_json, storage_errors, write_json
from fivefold.errors import ConfigError, DownloadError

if TYPE_CHECKING:
    import httpx

PREFIX = "hf:"
_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")
_READABLE = (".parquet", ".jsonl", ".jsonl.zst", ".jsonl.gz")
_SECONDS = 60.0


class UnreachableError(DownloadError):
    """The Hub itself cannot be reached, whatever is asked of it."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a data set."""

    name: str
    size_bytes: int
    sha256: str
    """Empty where the Hub states none."""


def fetch_dataset(
    given: str, cache: Path, endpoint: str, members: re.Pattern[str] | None = None
) -> list[tuple[str, Path]]:
    """Return name and path of each file of `hf:...`, from the cache or the network.

    With `members` only the files whose whole names match; a cache holds one choice of a data set.

    Raises:
        ConfigError: no name of a data set.
        DownloadError: no such data set, none of its files can be read, or one does not arrive
            whole.
        UnreachableError: no network.
        StorageError: the cache cannot be written.
    """
    matched = _NAME.fullmatch(given.removeprefix(PREFIX))
    # A part of dots alone would leave the cache.
    if matched is None or re.search(r"(?:^|/)\.+(?:/|$)", matched["name"]):
        raise ConfigError(
            expected="`hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`",
            found=f"`{given}`",
            fix="Copy the name from the data set's page",
        )
    name, revision = matched["name"], matched["revision"] or "main"
    folder = cache / "hub" / name.replace("/", "--")
    record = folder / f"{revision.replace('/', '--')}.json"
    known = read_json(record)
    if known is not None:
        files = [(HubFile(**one), folder / known["commit"] / one["name"]) for one in known["files"]]
        if all(_is_whole(path, file) for file, path in files):
            return [(file.name, path) for file, path in files]
    # Most commands never come here.
    import httpx

    with storage_errors(folder), httpx.Client(timeout=_SECONDS, follow_redirects=True) as client:
        try:
            commit, listed = _list_files(client, endpoint, name, revision)
            listed = [one for one in listed if members is None or members.fullmatch(one.name)]
            if not listed:
                named = f" and match `{members.pattern}`" if members else ""
                raise DownloadError(
                    expected=f"files that end in {', '.join(_READABLE)}{named} in `{given}`",
                    found="none",
                    fix="Choose another data set, or a revision such as `@refs/convert/parquet`",
                )
            found = []
            for file in listed:
                path = folder / commit / file.name
                if not _is_whole(path, file):
                    place = f"{endpoint}/datasets/{name}/resolve/{commit}/{quote(file.name)}"
                    _download(client, place, path, file)
                found.append((file.name, path))
        except httpx.TransportError as error:
            raise _download_error(
                given, str(error) or type(error).__name__, UnreachableError
            ) from error
        except httpx.HTTPError as error:
            raise _download_error(given, str(error) or type(error).__name__) from error
    write_json(record, {"commit": commit, "files": [asdict(file) for file in listed]})
    return found


def _list_files(
    client: "httpx.Client", endpoint: str, name: str, revision: str
) -> tuple[str, list[HubFile]]:
    place = f"{endpoint}/api/datasets/{name}/revision/{quote(revision, safe='')}"
    answer = client.get(place, params={"blobs": "true"}).raise_for_status()
    try:
        value: Any = answer.json()
        commit = str(value["sha"])
        files = [
            HubFile(one["rfilename"], int(one["size"]), (one.get("lfs") or {}).get("sha256", ""))
            for one in value["siblings"]
            if one["rfilename"].lower().endswith(_READABLE)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise _download_error(PREFIX + name, f"an answer of another form ({error!r})") from error
    names = [commit, *(file.name for file in files)]
    if any(".." in one.split("/") or one.startswith("/") for one in names):
        raise _download_error(PREFIX + name, "names that leave their folder")
    return commit, sorted(files, key=lambda file: file.name)


def _download(client: "httpx.Client", place: str, path: Path, file: HubFile) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    with client.stream("GET", place) as answer, partial.open("wb") as out:
        for block in answer.raise_for_status().iter_bytes():
            out.write(block)
    if not _is_whole(partial, file):
        size = partial.stat().st_size
        partial.unlink()
        raise _download_error(place, f"{size:,} bytes that are not the file's {file.size_bytes:,}")
    partial.replace(path)


def _is_whole(path: Path, file: HubFile) -> bool:
    if not path.is_file() or path.stat().st_size != file.size_bytes:
        return False
    if not file.sha256:
        return True
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256


def _download_error(
    what: str, found: str, kind: type[DownloadError] = DownloadError
) -> DownloadError:
    return kind(
        expected=f"to download `{what}` from the Hugging Face Hub",
        found=found[:300],
        fix="Check the name and the network and try again, or copy its Parquet files here and name "
        "their directory instead",
    )
