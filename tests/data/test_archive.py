import gzip
import io
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from data_builder import tar_bytes

from fivefold.data.archive import check_archive, read_members
from fivefold.errors import CorruptFileError

FILES = {
    "./usr/share/doc/x/a.html": b"<p>one</p>" * 300,
    "./usr/share/doc/x/b.html": b"<p>two</p>" * 7,
    "./usr/share/doc/x/readme.gz": gzip.compress(b"readme"),
    "./usr/share/doc/x/empty.html": b"",
}


@pytest.mark.parametrize("compression", ["xz", "gz", "zst"])
def test_deb_members_read_back(make_deb, compression: str):
    path = make_deb(FILES, compression)
    assert dict(read_members(path, r".*\.html")) == {
        name.removeprefix("./"): content for name, content in FILES.items() if "html" in name
    }


def test_gzipped_member_is_decompressed_and_renamed(make_deb):
    assert list(read_members(make_deb(FILES), r".*readme.*")) == [
        ("usr/share/doc/x/readme", b"readme")
    ]


def test_sdist_and_wheel_give_the_same_members(tmp_path: Path):
    files = {f"x-1/texts/{n}.txt": f"text {n}".encode() for n in range(30)}
    (tmp_path / "x-1.tar.gz").write_bytes(tar_bytes(files, "gz"))
    with zipfile.ZipFile(tmp_path / "x-1.whl", "w") as wheel:
        for name, content in reversed(files.items()):
            wheel.writestr(name, content)
    sdist = list(read_members(tmp_path / "x-1.tar.gz", r".*\.txt"))
    assert dict(sdist) == files
    assert list(read_members(tmp_path / "x-1.whl", r".*\.txt")) == sdist
    assert [name for name, _ in sdist] != list(files)


def test_links_are_not_followed(tmp_path: Path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("x/outside.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    assert list(read_members(path, ".*")) == []


@pytest.mark.parametrize("compression", ["xz", "gz", "zst"])
def test_any_truncation_of_a_deb_is_reported(make_deb, compression: str):
    path = make_deb(FILES, compression)
    whole = path.read_bytes()
    check_archive(path)
    # Odd members are padded; without that last byte nothing is lost.
    end = len(whole) - 1 if whole.endswith(b"\n") else len(whole)
    for kept in range(end):
        path.write_bytes(whole[:kept])
        with pytest.raises(CorruptFileError):
            check_archive(path)


def test_truncated_sdist_and_wheel_are_reported(tmp_path: Path):
    files = {f"x-1/{n}.txt": bytes([n]) * 5000 for n in range(5)}
    (tmp_path / "x.tar.gz").write_bytes(tar_bytes(files, "gz"))
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    for path in (tmp_path / "x.tar.gz", tmp_path / "x.whl"):
        whole = path.read_bytes()
        for kept in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:kept])
            with pytest.raises(CorruptFileError):
                check_archive(path)


def test_tar_that_ends_inside_a_member_is_reported(tmp_path: Path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("x/a.txt")
        member.size = 3000
        tar.addfile(member, io.BytesIO(b"a" * 3000))
    check_archive(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CorruptFileError):
        check_archive(path)


def test_altered_deb_is_reported(make_deb):
    path = make_deb(FILES)
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptFileError):
        check_archive(path)


@pytest.mark.parametrize("kind", ["whl", "gz"])
def test_of_a_long_member_no_more_is_decompressed_than_asked(kind: str, tmp_path: Path):
    bomb = gzip.compress(b"\0" * 50_000_000)
    files = {"x/bomb.txt.gz": bomb, "x/small.txt": b"text", "x/large.txt": b"a" * 5000}
    path = tmp_path / f"x.{'whl' if kind == 'whl' else 'tar.gz'}"
    if kind == "whl":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
            for name, content in files.items():
                wheel.writestr(name, content)
    else:
        path.write_bytes(tar_bytes(files, "gz"))
    tracemalloc.start()
    found = dict(read_members(path, ".*", 1001))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == {"x/bomb.txt": b"\0" * 1001, "x/small.txt": b"text", "x/large.txt": b"a" * 1001}
    assert peak < 5_000_000
