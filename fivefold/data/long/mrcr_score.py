"""MRCR's measure: how alike answer and gold are after the prefix; nothing without the prefix.

`SequenceMatcher(None, answer, gold).ratio()` after both are rid of the prefix, as in the grader
that comes with OpenAI's data set.
"""

from difflib import SequenceMatcher


def mrcr_score(answer: str, gold: str, prefix: str) -> float:
    """Return 0 to 1; `gold` begins with `prefix`."""
    assert gold.startswith(prefix), "the gold answer has its prefix"
    if not answer.startswith(prefix):
        return 0.0
    begin = len(prefix)
    return SequenceMatcher(None, answer[begin:], gold[begin:]).ratio()
