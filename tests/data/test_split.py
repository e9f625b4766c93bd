from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.split import Part, choose_heldout

SIZES = {
    f"{source}{n}": Part(source, 100 + n, f"{source}{n}") for source in "ab" for n in range(200)
}


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
    # The first letter names the text that a document is a part of.
    parts = {
        name: Part(source, size, name[0] + source, len(name))
        for name, (source, size) in sizes.items()
    }
    chosen = choose_heldout(parts, total, share, seed=0)
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
    equal = {name: part._replace(size_bytes=100) for name, part in SIZES.items()}
    small, large = (choose_heldout(equal, total, 0.5, seed=0) for total in (2000, 6000))
    assert small < large
    assert choose_heldout(equal, 2000, 0.5, seed=1) != small


def test_single_document_is_not_held_out():
    assert choose_heldout({"only": Part("book", 10_000, "only")}, 300_000, 0.1, seed=0) == set()


def cut_texts(part_counts: list[int]) -> dict[str, Part]:
    return {
        f"text{text}#part{number}": Part("books", 1000, f"text{text}", number)
        for text, count in enumerate(part_counts)
        for number in range(count)
    }


@given(counts=st.lists(st.integers(1, 4), min_size=10, max_size=30), seed=st.integers(0, 50))
def test_parts_of_one_text_stay_together(counts, seed):
    parts = cut_texts(counts)
    chosen = choose_heldout(parts, 10**6, 0.5, seed)
    assert chosen
    for text in range(len(counts)):
        sides = {name in chosen for name, part in parts.items() if part.text_id == f"text{text}"}
        assert len(sides) == 1


def test_single_long_text_gives_its_last_parts():
    chosen = choose_heldout(cut_texts([40]), 10**6, 0.1, seed=0)
    assert chosen == {f"text0#part{number}" for number in (36, 37, 38, 39)}


def test_single_long_text_gives_nothing_where_its_last_part_is_too_long():
    assert choose_heldout(cut_texts([4]), 900, 0.5, seed=0) == set()
