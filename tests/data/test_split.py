from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.split import choose_heldout

SIZES = {f"{source}{n}": (source, 100 + n) for source in "ab" for n in range(200)}


@given(order=st.permutations(list(SIZES)[:60]), seed=st.integers(-3, 3))
def test_choice_does_not_depend_on_the_order(order: list[str], seed: int):
    first = choose_heldout({name: SIZES[name] for name in sorted(order)}, 2000, 0.5, seed)
    assert choose_heldout({name: SIZES[name] for name in order}, 2000, 0.5, seed) == first


@given(
    sizes=st.dictionaries(
        st.text("abcdef", min_size=1, max_size=5),
        st.tuples(st.sampled_from("xyz"), st.integers(1, 1000)),
        min_size=1,
    ),
    total=st.integers(0, 5000),
    share=st.floats(0, 0.5),
)
def test_bounds_hold_in_all_and_for_each_source(sizes, total, share):
    chosen = choose_heldout(sizes, total, share, seed=0)
    corpus = sum(size for _, size in sizes.values())
    assert sum(sizes[name][1] for name in chosen) <= total
    for source in {source for source, _ in sizes.values()}:
        of_source = sum(size for s, size in sizes.values() if s == source)
        held = sum(sizes[name][1] for name in chosen if sizes[name][0] == source)
        assert held <= share * of_source + 1e-6
        assert held <= total * of_source / corpus + 1e-6


def test_each_source_is_held_out_in_proportion():
    chosen = choose_heldout(SIZES, 4000, 0.5, seed=1)
    for source in "ab":
        held = sum(SIZES[name][1] for name in chosen if SIZES[name][0] == source)
        assert 1700 < held <= 2000


def test_choice_grows_with_the_budget_and_moves_with_the_seed():
    # Within the smaller budget nothing was passed over, so the larger one contains it.
    equal = {name: (source, 100) for name, (source, _) in SIZES.items()}
    small, large = (choose_heldout(equal, total, 0.5, seed=0) for total in (2000, 6000))
    assert small < large
    assert choose_heldout(equal, 2000, 0.5, seed=1) != small


def test_single_document_is_not_held_out():
    assert choose_heldout({"only": ("book", 10_000)}, 300_000, 0.1, seed=0) == set()
