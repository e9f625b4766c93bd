"""Gather the selected keys, or mask the others? The faster of two forms of one function.

Masked attention costs what all visible keys cost, at the full speed of a dense kernel. Gathered
attention costs what the selected keys cost, but each query moves its own rows. The rates are
measured by `benchmarks/sparse_attention.py` on two CPU cores; only their ratio matters.
"""

GATHER_COST = 6.0
"""Cost of one gathered key over that of one key of a dense kernel, forward and backward."""


def gather_is_faster(queries: int, keys: int, selected: int) -> bool:
    """Compare the costs of `queries` queries at the end of `keys` keys."""
    visible_a_query = keys - (queries - 1) / 2
    return GATHER_COST * min(selected, visible_a_query) < visible_a_query
