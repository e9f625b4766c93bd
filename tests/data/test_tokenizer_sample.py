import pytest
from data_builder import make_document
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.document import document_writer
from fivefold.data.tokenizer_sample import sample_texts, source_budgets

SIZES = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 10**6), min_size=1)


@given(sizes=SIZES, budget=st.integers(1, 10**6), exponent=st.floats(0, 1))
def test_budgets_spend_all_that_the_sources_have(sizes, budget, exponent):
    budgets = source_budgets(sizes, budget, exponent)
    assert all(budgets[name] <= sizes[name] for name in sizes)
    assert sum(budgets.values()) == pytest.approx(min(budget, sum(sizes.values())))


def test_exponent_one_keeps_proportions_and_zero_makes_shares_equal():
    sizes = {"large": 9000, "small": 1000}
    assert source_budgets(sizes, 1000, 1.0) == pytest.approx({"large": 900, "small": 100})
    assert source_budgets(sizes, 1000, 0.0) == pytest.approx({"large": 500, "small": 500})


def test_small_source_leaves_its_share_to_the_others():
    budgets = source_budgets({"large": 9000, "small": 100, "middle": 700}, 3000, 0.0)
    assert budgets == pytest.approx({"small": 100, "middle": 700, "large": 2200})


def test_sample_takes_documents_in_order_until_the_budget(tmp_path):
    path = tmp_path / "x.jsonl.zst"
    with document_writer(path) as add:
        for source in ("a", "b"):
            for number in range(10):
                add(make_document(f"{source}{number}".ljust(100), str(number), source))
    texts = [text.strip() for text in sample_texts(path, 600, 1.0)]
    assert texts == ["a0", "a1", "a2", "b0", "b1", "b2"]
