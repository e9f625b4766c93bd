"""Fill in the middle: invertible whatever the units, the cuts and the text."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.code.concatenate import PackedFile, pack_repository, unpack
from fivefold.data.code.config import FimConfig, PackConfig
from fivefold.data.code.fim import (
    MIDDLE,
    PREFIX,
    SUFFIX,
    Marked,
    cut,
    encode_marked,
    fill_in_middle,
    marks_of,
    rearrange,
    restore,
    restore_document,
    restore_text,
)
from fivefold.data.document import Document
from fivefold.text.tokenizer import Tokenizer

ALWAYS = FimConfig(rate=1.0, min_characters=3)
# Texts that spell the marks themselves are among them.
TEXTS = st.lists(st.sampled_from([PREFIX, SUFFIX, MIDDLE, "a", "\n", "é", "<|"])).map("".join)


@given(TEXTS, st.text(max_size=8))
def test_texts_are_restored(text: str, key: str):
    marked = fill_in_middle(text, key, ALWAYS)
    assert restore_text(marked) == text
    assert bool(marked.marks) == (len(text) >= 3)
    for place, mark in marked.marks:
        assert marked.text.startswith(mark, place)
    assert len(marked.text) == len(text) + sum(len(mark) for _, mark in marked.marks)


@given(st.lists(st.integers(0, 9)), st.integers(0, 2**32), st.sampled_from([0.0, 1.0]))
def test_ids_are_restored(ids: list[int], seed: int, spm_share: float):
    parts = cut(len(ids), Random(seed), spm_share)
    written = rearrange(ids, parts, (-1, -2, -3))
    places = [written.index(mark) for mark in (-1, -2, -3)]
    assert restore(written, places) == ids
    assert places[0] == 0
    # In SPM nothing stands between PREFIX and SUFFIX; in both the middle comes last.
    assert (places[1] == 1) >= (parts.order == "spm")
    assert len(written) == len(ids) + 3


def test_orders_by_the_paper():
    text = "abcdefghij"
    orders = {}
    for number in range(40):
        marked = fill_in_middle(text, str(number), ALWAYS)
        orders[marked.order] = marked.text
    prefix, rest = orders["psm"].removeprefix(PREFIX).split(SUFFIX)
    suffix, middle = rest.split(MIDDLE)
    assert prefix + middle + suffix == text
    suffix, head = orders["spm"].removeprefix(PREFIX + SUFFIX).split(MIDDLE)
    assert head + suffix == text


def test_shares_are_those_of_the_config():
    text, n = "x" * 200, 4000
    config = FimConfig(rate=0.4, spm_share=0.25)
    orders = [fill_in_middle(text, str(number), config).order for number in range(n)]
    for order, share in (("", 0.6), ("psm", 0.3), ("spm", 0.1)):
        sigma = (share * (1 - share) / n) ** 0.5
        assert abs(orders.count(order) / n - share) < 4 * sigma
    assert fill_in_middle("x" * 63, "0", FimConfig(rate=1.0)) == Marked("x" * 63)


def test_cuts_are_uniform():
    n, size = 6000, 9
    parts = [cut(size, Random(seed), 0.0) for seed in range(n)]
    counts = [0] * (size + 1)
    for part in parts:
        for place in part.third:
            counts[place] += 1
    expected = 2 * n / (size + 1)
    # Chi-square with 9 degrees of freedom: 27.9 is passed by one in a thousand.
    assert sum((count - expected) ** 2 / expected for count in counts) < 27.9


def test_marks_become_special_tokens_and_their_spelling_does_not(tokenizer: Tokenizer):
    text = f"before = 1\nmark = '{MIDDLE}'\nafter = '{PREFIX}'\n" * 2
    for key in range(12):
        marked = fill_in_middle(text, str(key), ALWAYS)
        ids = encode_marked(tokenizer, marked.text, marked.marks)
        special = [tokenizer.id_of(mark) for mark in (PREFIX, SUFFIX, MIDDLE)]
        assert [one for one in ids if one in special] == special
        places = [ids.index(one) for one in special]
        assert tokenizer.decode(restore(ids, places)).encode() == text.encode()


@given(st.lists(TEXTS, min_size=1, max_size=4), st.text(max_size=8))
def test_packed_documents_are_restored_with_their_files_in_place(texts: list[str], key: str):
    """Headings stay, every file reads as before, and a mark that a text spells is left alone."""
    pack = PackConfig(fim=FimConfig(rate=0.5, min_characters=3))
    files = [PackedFile(f"{key}{n}", f"f{n}.txt", "python", text) for n, text in enumerate(texts)]
    (packed,) = pack_repository("r", files, pack)
    assert marks_of(packed) == [tuple(mark) for mark in packed.meta["marks"]]
    plain = restore_document(packed)
    assert unpack(plain) == unpack(packed) == [(f"f{n}.txt", t) for n, t in enumerate(texts)]
    assert marks_of(plain) == []


def test_foreign_marks_are_no_marks():
    text = f"a{PREFIX}b"
    for marks in ("x", [[1]], [["1", PREFIX]], [[0, PREFIX]], [[1, "<|user|>"]], [[1, PREFIX], 7]):
        assert marks_of(Document("id", text, "s", meta={"marks": marks})) == []
    assert marks_of(Document("id", text, "s", meta={"marks": [[1, PREFIX]]})) == [(1, PREFIX)]
