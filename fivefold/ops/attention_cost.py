"""Gather the selected keys, or mask the others? The faster of two forms of one function.

Masked attention costs what all visible keys cost, at the full speed of a dense kernel. Gathered
attention costs a fixed sum a query and something a selected key. Costs are in units of one key of
the dense kernel, forward and backward, fitted to `benchmarks/sparse_attention.py` at the `mini`
shape on two CPU cores: gathering wins from about 1,000 tokens at 128 keys and 600 at 32.
"""

QUERY_COST = 250.0
"""Cost of gathering for one query, whatever it selects."""
KEY_COST = 1.8
"""Cost of one gathered key."""


def gather_is_faster(queries: int, keys: int, selected: int) -> bool:
    """Compare the costs of `queries` queries at the end of `keys` keys."""
    visible_a_query = keys - (queries - 1) / 2
    return QUERY_COST + KEY_COST * min(selected, visible_a_query) < visible_a_query
