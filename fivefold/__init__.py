"""Fivefold: the GLM-5 recipe as one PyTorch codebase.

Reading order: `docs/spine.md`. Rooms, from the top: `recipes`, `train`, `plan`, `models`, `data`,
`ops`, `text`, `report`, and the foundation `stage`, `metrics`, `config`, `log`, `errors`. Imports
point downwards only; `pyproject.toml` holds the contracts and import-linter checks them.
"""

__version__ = "0.1.0"
