"""The mode `datatrove` against datatrove's own filters, over the same words."""

# Typographic and full-width marks, and other scripts, are what is tested.
# ruff: noqa: RUF001

from collections import Counter
from typing import Any

import datatrove.utils.word_tokenizers as word_tokenizers
import pytest
from datatrove.data import Document as Page
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.data.curate.config import C4Config, HeuristicsConfig
from fivefold.data.curate.datatrove import (
    edit_as_c4,
    fineweb_reason,
    judge_in_datatrove,
    quality_finding,
)
from fivefold.data.curate.lexicon import treebank_lexicon
from fivefold.data.curate.words import count_sentences, treebank_words

CONFIG = HeuristicsConfig(mode="datatrove")

# Theirs to ours.
REASONS = {
    "dup_para_frac": "repetition.paragraphs",
    "dup_para_char_frac": "repetition.paragraph_characters",
    "dup_line_frac": "repetition.lines",
    "dup_line_char_frac": "repetition.line_characters",
    "empty": "repetition.empty",
    **{f"top_{n}_gram": f"repetition.top_{n}gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"repetition.duplicate_{n}gram" for n in range(5, 11)},
    "gopher_short_doc": "quality.few_words",
    "gopher_long_doc": "quality.many_words",
    "gopher_below_avg_threshold": "quality.short_words",
    "gopher_above_avg_threshold": "quality.long_words",
    "gopher_too_many_hashes": "quality.hashes",
    "gopher_too_many_ellipsis": "quality.ellipses",
    "gopher_too_many_bullets": "quality.bullets",
    "gopher_too_many_end_ellipsis": "quality.ellipsis_lines",
    "gopher_below_alpha_threshold": "quality.few_alphabetic",
    "gopher_enough_stop_words": "quality.few_stop_words",
    "lorem_ipsum": "c4.lorem_ipsum",
    "curly_bracket": "c4.curly_bracket",
    "too_few_sentences": "c4.few_sentences",
    "line_punct_ratio": "fineweb.few_punctuated_lines",
    "short_line_ratio": "fineweb.short_lines",
    "char_dup_ratio": "fineweb.duplicate_lines",
    "list_ratio": "fineweb.list",
}


class OurWords(word_tokenizers.WordTokenizer):
    """Our word splitter as one of datatrove's: spaCy, its own, is not installed."""

    def word_tokenize(self, text: str) -> list[str]:
        return treebank_words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, 0)] * count_sentences(treebank_words(text))


@pytest.fixture(scope="module", autouse=True)
def _same_words():
    theirs = word_tokenizers.load_word_tokenizer
    word_tokenizers.load_word_tokenizer = lambda language: OurWords()  # type: ignore[assignment]
    yield
    word_tokenizers.load_word_tokenizer = theirs


def filters(**c4: Any) -> list[Any]:
    return [
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(**{"filter_no_terminal_punct": False, **c4}),
        FineWebQualityFilter(),
    ]


def judge_as_they_do(text: str, chain: list[Any]) -> tuple[str, str]:
    page = Page(text=text, id="")
    for step in chain:
        result = step.filter(page)
        if result is not True:
            return page.text, REASONS[result[1]]
    return page.text, ""


def assert_same(text: str, chain: list[Any]) -> str:
    verdict = judge_in_datatrove(text, CONFIG, chinese=False)
    expected, reason = judge_as_they_do(text, chain)
    assert verdict.reason == reason
    if verdict.is_kept:
        assert verdict.text == expected
    return reason


def test_verdicts_on_real_pages_are_datatroves(six_hundred: list[str]):
    chain = filters()
    reasons = Counter(assert_same(page, chain) for page in six_hundred)
    assert len(reasons) >= 8, reasons
    assert reasons[""] >= 1, reasons


def test_each_filter_by_itself_is_datatroves_on_real_pages(six_hundred: list[str]):
    """Most pages fall at one rule of the chain; here each meets all others too."""
    _, quality, c4, fineweb = filters()
    kept: Counter[str] = Counter()
    for page in six_hundred:
        finding = quality_finding(
            page, treebank_lexicon().read(page), CONFIG.quality, chinese=False
        )
        ours = finding[0] if finding else ""
        assert ours == judge_as_they_do(page, [quality])[1]
        verdict = edit_as_c4(page, CONFIG.c4, chinese=False)
        text, reason = judge_as_they_do(page, [c4])
        assert verdict.reason == reason
        assert reason or verdict.text == text
        last = fineweb_reason(page, CONFIG.fineweb, chinese=False)
        assert (
            last.replace("fineweb.empty", "repetition.empty")
            == (judge_as_they_do(page, [fineweb])[1])
        )
        kept.update(quality=not ours, c4=not reason, fineweb=not last)
    assert min(kept.values()) >= 2, kept


@pytest.mark.slow
def test_verdicts_on_all_real_pages_are_datatroves(pages: list[str]):
    chain = filters()
    for page in pages:
        assert_same(page, chain)


LINES = st.sampled_from(
    [
        "",
        "  ",
        "The cat sat. It was with that dog!",
        "Two of them have gone to be there?",
        "- point",
        "• point",
        "and then...",
        "It went on…",
        "lorem [1]ipsum",
        "lorem ipsum dolor sit",
        "f(x) {",
        "use javascript here now",
        "our cookie [2]policy is here",
        "See [edit] this [12].",
        "#",
        "1 2 3",
        "a b c",
        "word",
        "x" * 1001 + " y z",
        "I can't. You won't. He said: 'No.' Then?",
        "\x0b a b c.",
    ]
)
PROSE = (
    "The mill stood near the old bridge. They have to be careful with that. Nobody came to see it, "
    "and of the children only two remembered how it sounded. Why would anyone ask? "
    "A ferry crossed twice a day until autumn. Then the water rose, and the men went home early."
)


@settings(max_examples=300)
@given(st.lists(LINES, max_size=14), st.sampled_from(["\n", "\n\n", " "]), st.integers(0, 2))
def test_verdicts_on_made_pages_are_datatroves(lines: list[str], end: str, prose: int):
    assert_same(
        end.join([*lines, *[PROSE] * min(prose, 1), *lines[: max(0, prose - 1)]]), filters()
    )


@settings(max_examples=200)
@given(st.lists(LINES, max_size=12))
def test_c4_with_terminal_punctuation_is_datatroves(lines: list[str]):
    text = "\n".join([*lines, PROSE])
    verdict = edit_as_c4(text, C4Config(terminal_punctuation=True), chinese=False)
    expected, reason = judge_as_they_do(text, [C4QualityFilter()])
    assert verdict.reason == reason
    assert reason or verdict.text == expected


def test_every_line_that_c4_takes_is_named():
    text = f"menu\n{PROSE}\nplease enable javascript now\nsee [3] our terms of use"
    verdict = edit_as_c4(text, C4Config(), chinese=False)
    assert verdict.text == PROSE
    assert [edit.reason for edit in verdict.edits] == ["c4.few_words", "c4.javascript", "c4.policy"]
    assert all(text[edit.begin : edit.end] == edit.removed for edit in verdict.edits)


def test_chinese_sentences_end_at_full_width_marks():
    text = (
        "我们在山上住了三年。每天都有人来看花园！他们把苹果送到城里的市场，大家为这个好年成而高兴。"
        "老人不说话，只在门前坐着。你知道为什么吗？因为河水上来了，一个人也不能过去。"
    )
    assert judge_in_datatrove(text, CONFIG, chinese=True).is_kept
    fewer = text.replace("。", "，")
    assert judge_in_datatrove(fewer, CONFIG, chinese=True).reason == "c4.few_sentences"
