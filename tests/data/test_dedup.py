from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.dedup import duplicate_ids, text_fingerprint


def test_fingerprint_ignores_white_space_and_unicode_form_only():
    same = ["a  café", f" a\ncafe{chr(0x301)} ", "a\tcafé"]
    assert len({text_fingerprint(text) for text in same}) == 1
    assert text_fingerprint("a cafe") != text_fingerprint(same[0])
    assert text_fingerprint("ab c") != text_fingerprint("a bc")


def test_fingerprint_accepts_broken_surrogates():
    assert len(text_fingerprint("a \ud800 b")) == 16


@given(
    texts=st.dictionaries(st.text("abc", min_size=1, max_size=4), st.sampled_from("xyz")),
    data=st.data(),
)
def test_one_copy_of_each_text_stays_whatever_the_order(texts: dict[str, str], data: st.DataObject):
    fingerprints = {name: text_fingerprint(text) for name, text in texts.items()}
    dropped = duplicate_ids(fingerprints)
    kept = [texts[name] for name in texts if name not in dropped]
    assert sorted(kept) == sorted(set(texts.values()))
    order = data.draw(st.permutations(list(fingerprints)))
    assert duplicate_ids({name: fingerprints[name] for name in order}) == dropped
