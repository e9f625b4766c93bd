"""The texts that a tokenizer is trained on, with small sources counting beyond their size.

A source of n bytes gets a share of the budget in proportion to n to some power below one
(temperature sampling), so that the largest source does not spend all merges. Documents keep the
order of the file: the tokenizer depends on nothing else.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fivefold.data.document import read_documents


def sample_texts(documents: Path, budget_bytes: int, source_exponent: float) -> Iterator[str]:
    """Yield texts of at most about `budget_bytes` UTF-8 bytes in all.

    Raises:
        CorruptFileError: the document file is damaged.
    """
    sizes: Counter[str] = Counter()
    for document in read_documents(documents):
        sizes[document.source] += len(document.text.encode())
    left = source_budgets(sizes, budget_bytes, source_exponent)
    for document in read_documents(documents):
        if left[document.source] > 0:
            yield document.text
            left[document.source] -= len(document.text.encode())


def source_budgets(
    sizes: dict[str, int], budget_bytes: int, source_exponent: float
) -> dict[str, float]:
    """Divide the budget among sources of these sizes; what a small source cannot use goes on."""
    budgets: dict[str, float] = {}
    left = float(budget_bytes)
    weights = {name: size**source_exponent for name, size in sizes.items()}
    # The source that is fullest for its weight is served first, and the rest share what remains.
    for name in sorted(sizes, key=lambda name: (sizes[name] / weights[name], name)):
        share = left * weights[name] / sum(weights[n] for n in sizes if n not in budgets)
        budgets[name] = min(float(sizes[name]), share)
        left -= budgets[name]
    return budgets
