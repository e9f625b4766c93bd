"""What all rooms' tests share: one torch thread, the data beside the repository, no GPU needed."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says more of the machine than of the code.
settings.register_profile("fivefold", deadline=None)
settings.load_profile("fivefold")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip `gpu` tests where there is none; leave torch alone until a test imports it."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs CUDA")
    torch_module = sys.modules.get("torch")
    # Spinning OpenMP threads of several processes on a busy machine are far slower than one each.
    if torch_module is not None and torch_module.get_num_threads() != 1:
        torch_module.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the directory of public data sets; optional for users, required where CI=true."""
    directory = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not directory.is_dir():
        missing = f"no data sets at {directory}"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return directory
