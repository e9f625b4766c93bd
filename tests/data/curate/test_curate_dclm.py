"""DCLM's rules, literally: plain loops over the definitions, against the fast ones."""

# Typographic and full-width marks, and other scripts, are what is tested.
# ruff: noqa: RUF001

import re
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.data.curate.config import HeuristicsConfig, LineEditConfig
from fivefold.data.curate.dclm import judge_in_dclm
from fivefold.data.curate.heuristics import judge
from fivefold.data.curate.line_edit import edit_lines, remove_addresses
from fivefold.data.curate.words import unicode_words

CONFIG = HeuristicsConfig()
STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}


def segments(text: str, end: str) -> list[str]:
    return [part.strip() for part in text.split(end) if part.strip()]


def page_words(text: str) -> list[str]:
    return [word for word in re.split(r"[ \n\r\t\v\f\0]+", text) if word and word[0].isalnum()]


def literal_page_reason(text: str) -> str:
    words = text.split()
    if len(page_words(text)) < 50:
        return "quality.few_words"
    if len(page_words(text)) > 100_000:
        return "quality.many_words"
    mean = sum(len(word) for word in words) / len(words)
    if mean < 3:
        return "quality.short_words"
    if mean > 10:
        return "quality.long_words"
    if sum(text.count(symbol) for symbol in ("#", "...", ". . .", "…")) / len(words) > 0.1:
        return "quality.symbols"
    lines = segments(text, "\n")
    if sum(line[0] in "●•*-" for line in lines) > 0.9 * len(lines):
        return "quality.bullets"
    if sum(line.endswith(("...", ". . .", "…")) for line in lines) > 0.3 * len(lines):
        return "quality.ellipsis_lines"
    bare = [word for word in words if not any(letter.isalpha() for letter in word)]
    if len(bare) / len(words) > 0.2:
        return "quality.few_alphabetic"
    if sum(word.lower() in STOP_WORDS for word in words) < 2:
        return "quality.few_stop_words"
    return ""


def literal_repetition_reason(text: str) -> str:
    kinds = {"line": segments(text, "\n"), "paragraph": segments(text, "\n\n")}
    for suffix, limit in (("s", 0.3), ("_characters", 0.2)):
        for kind, parts in kinds.items():
            size = len if suffix == "_characters" else (lambda part: 1)
            counts = Counter(parts)
            twice = sum(size(part) for part in parts if counts[part] > 1)
            if len(parts) > 1 and twice / sum(size(part) for part in parts) > limit:
                return f"repetition.{kind}{suffix}"
    words = unicode_words(text)
    total = sum(map(len, words))
    limits = {2: 0.2, 3: 0.18, 4: 0.16, 5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1}
    for n, limit in limits.items():
        runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        counts = Counter(runs)
        if not runs or max(counts.values()) == 1:
            continue
        if n <= 4:
            most = max(counts.values())
            longest = max(sum(map(len, run)) for run, count in counts.items() if count == most)
            share, kind = longest * most / total, "top"
        else:
            inside = {i + k for i, run in enumerate(runs) if counts[run] > 1 for k in range(n)}
            share, kind = sum(len(words[i]) for i in inside) / total, "duplicate"
        if share > limit:
            return f"repetition.{kind}_{n}gram"
    return ""


def literal_edit(text: str) -> str:
    """The edits one after the other, each over the whole page."""

    def keep(text: str, keeps: Callable[[str], bool]) -> str:
        return "\n".join(line for line in text.split("\n") if not line or keeps(line))

    def capitals(line: str) -> bool:
        return sum(letter.isupper() for letter in line) / len(line) <= 0.5

    counter = re.compile(
        r"^\W*\d(?:,|\.|\d)*(?:k|m|b)?\s+(?:likes|shares|comments|retweets|reposts|quotes|bookmarks"
        r"|upvotes|downvotes|downloads|views|followers)\W*$"
    )
    text = keep(text, capitals).strip()
    text = keep(text, lambda line: sum(c.isdigit() for c in line) / len(line) <= 0.999999).strip()
    text = keep(text, lambda line: not counter.search(line.lower())).strip()
    text = keep(text, lambda line: len(line.split()) >= 2)
    for phrase in (r"\s?items in cart", r"\s?Read more...$", r"^Sign-in\s?"):
        lines = []
        for line in text.split("\n"):
            if len(line.split()) <= 10:
                shorter = re.sub(phrase, "", line, flags=re.IGNORECASE)
                if line and not shorter.strip():
                    continue
                line = shorter
            lines.append(line)
        text = "\n".join(lines).strip()
    return text


def literal_judge(text: str) -> tuple[str, str]:
    reason = literal_page_reason(text) or literal_repetition_reason(text)
    if reason:
        return text, reason
    edited = literal_edit(text)
    if not edited:
        return text, "edit.nothing_left"
    before, after = len(page_words(text)), len(page_words(edited))
    if (before - after) / before > 0.05:
        return text, "edit.too_much_removed"
    return edited, ""


def assert_as_plain_loops(page: str) -> str:
    verdict = judge_in_dclm(page, CONFIG, chinese=False)
    assert (verdict.text, verdict.reason) == literal_judge(page)
    return verdict.reason


def test_verdicts_on_real_pages_are_those_of_plain_loops(six_hundred: list[str]):
    reasons = Counter(assert_as_plain_loops(page) for page in six_hundred)
    assert len(reasons) >= 8, reasons
    assert reasons[""] >= 20, reasons


@pytest.mark.slow
def test_verdicts_on_all_real_pages_are_those_of_plain_loops(pages: list[str]):
    for page in pages:
        assert_as_plain_loops(page)


# Lines that rules look for, beside ordinary ones; sampled so that repetition is frequent.
LINES = st.sampled_from(
    [
        "",
        " ",
        "the cat sat with that dog",
        "THE CAT",
        "THe",
        "123",
        " 12 ",
        "3 likes",
        "1.2K views!",
        "word",
        "2 items in cart",
        "items in cart",
        "items in cart Sign-in now Read more...",
        "my items in cart of 3 items in cart Read more...",
        "more here Read more...",
        "Sign-in now please",
        "- a point of the list",
        "it went on...",
        "and then … ",
        "# # #",
        "a b",
        "we have to be there",
    ]
)


@settings(max_examples=300)
@given(st.lists(LINES, max_size=30), st.sampled_from(["\n", "\n\n"]))
def test_verdicts_on_made_pages_are_those_of_plain_loops(lines: list[str], end: str):
    page = end.join(lines)
    if page_words(page):
        page += end + "the rest of the page is that which we have to be with " * 3
    verdict = judge_in_dclm(page, CONFIG, chinese=False)
    assert (verdict.text, verdict.reason) == literal_judge(page)


@given(st.lists(LINES, max_size=12))
def test_edits_are_those_of_plain_passes_and_name_what_they_took(lines: list[str]):
    text = "\n".join(lines)
    edited, edits = edit_lines(text, LineEditConfig())
    assert edited == literal_edit(text)
    for edit in edits:
        assert edit.removed == text[edit.begin : edit.end]


@pytest.mark.parametrize(("words", "reason"), [(49, "quality.few_words"), (50, "")])
def test_length_limit_is_inclusive(words: int, reason: str):
    body = [
        "the",
        "with",
        *(f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(words - 2)),
    ]
    assert judge_in_dclm(" ".join(body), CONFIG, chinese=False).reason == reason


@pytest.mark.parametrize(("twice", "reason"), [(3, ""), (4, "repetition.lines")])
def test_share_of_lines_must_be_exceeded(twice: int, reason: str):
    letters = "abcdefghijklm"[: 10 - twice]
    lines = [
        f"the{x} {x}tree stands{x} {x}with quiet{x} {x}stone near{x} {x}river" for x in letters
    ]
    lines += ["the of"] * twice
    assert judge_in_dclm("\n".join(lines), CONFIG, chinese=False).reason == reason


def test_addresses_go_and_are_accounted_for():
    text = (
        "See https://example.org/a?b=c, or www.x.de/y\n\n\n\nand 10.0.0.1:80 or mail.example.com."
    )
    cleaned, edits = remove_addresses(text)
    assert cleaned == "See or\n\nand or."
    assert [edit.removed.strip() for edit in edits] == [
        "https://example.org/a?b=c,",
        "www.x.de/y",
        "10.0.0.1:80",
        "mail.example.com",
    ]
    assert all(text[edit.begin : edit.end] == edit.removed for edit in edits)
    plain = "No address: e.g. 3.14 or version 2.0.1 here."
    assert remove_addresses(plain) == (plain, ())


def test_chinese_pages_are_judged_by_characters():
    text = "这是一个关于河流的故事。我们在山上住了三年，每天都有人来看我们的花园。"
    text += "到了秋天，他们把苹果送到城里的市场，大家为这个好年成而高兴。老人不说话，只在门前坐着。"
    assert judge(text, CONFIG).is_kept
    assert judge_in_dclm(text, CONFIG, chinese=False).reason == "quality.few_words"
    assert judge(text * 3, CONFIG).reason.startswith("repetition.")
    assert judge("春眠不觉晓" * 2, CONFIG).reason == "quality.few_words"


def test_a_dropped_repetition_shows_where_it_is():
    text = "the first line with words\n" + "spam spam and that again\n" * 8 + "other " * 50
    verdict = judge_in_dclm(text, CONFIG, chinese=False)
    assert verdict.reason == "repetition.lines"
    assert verdict.span is not None
    assert text[slice(*verdict.span)] == "spam spam and that again"
