from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from data_builder import deb_bytes, silent_track


@pytest.fixture
def track():
    return silent_track


@pytest.fixture
def make_deb(tmp_path: Path) -> Callable[..., Path]:
    def build(files: Mapping[str, bytes], compression: str = "xz", name: str = "x.deb") -> Path:
        path = tmp_path / name
        path.write_bytes(deb_bytes(files, compression))
        return path

    return build
