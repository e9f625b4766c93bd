"""Live servers of `tests/serve` are at hand for loops that sample by URL."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "serve"))
