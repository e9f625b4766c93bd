"""Solvers of MRCR-like conversations that read nothing but the messages.

`solve` understands every kind of last request. `solve_blind` finds the texts that a request is
about, and takes any of them.
"""

import re
from collections.abc import Sequence
from random import Random
from typing import Any

_NUMBER = r"(\d+)(?:st|nd|rd|th)"
_REQUEST = re.compile(r"\b(?:an?|your) ([\w ]+?) about (\w+)")
_NONE = "none"
Messages = Sequence[dict[str, Any]]


def read_texts(messages: Messages) -> list[tuple[str, str, str]]:
    """Return (form, topic, text) of every text in the conversation, in order."""
    texts = []
    for number, message in enumerate(messages):
        if message["role"] != "user":
            continue
        content = message["content"]
        head, _, body = content.partition("\n\n")
        form, topic = _REQUEST.findall(head)[-1]
        if head.startswith("Here is"):
            texts.append((form, topic, body))
            continue
        answer = messages[number + 1]
        if answer.get("tool_calls"):
            answer = messages[number + 2]
        texts.append((form, topic, answer["content"]))
    return texts


def read_quest(content: str) -> tuple[str, str, str]:
    """Return prefix, form and topic that the last request names."""
    if match := re.search(
        r"Write (\w+) and directly after it, unchanged, (.*?) that you \w+ above", content
    ):
        prefix, what = match.groups()
        form, topic = re.search(r"([A-Za-z ]+?) about (\w+)", _without_place(what)).groups()  # type: ignore[union-attr]
        return prefix, form.strip(), topic
    prefix = re.match(r"\w+ ?(\w+)", content).group(1) if content.isascii() else _word_of(content)  # type: ignore[union-attr]
    form, topic = re.findall(r"[„«“] ?([\w ]+?) ?[“»”]", content)
    return prefix, form, topic


def _word_of(content: str) -> str:
    return re.search(r"\b([a-z2-9]{10})\b", content).group(1)  # type: ignore[union-attr]


def _without_place(what: str) -> str:
    what = re.sub(rf"^the {_NUMBER} and the {_NUMBER} ", "", what)
    what = re.sub(rf"^the (?:{_NUMBER} to last|last|{_NUMBER}) ", "", what)
    what = re.sub(r"^version \d+ of the ", "", what)
    return re.sub(r"^the ", "", what)


def solve(messages: Messages) -> str:
    """Answer the last request."""
    *before, quest = messages
    content = quest["content"]
    prefix, form, topic = read_quest(content)
    texts = [text for a, b, text in read_texts(before) if (a, b) == (form, topic)]
    places = _places(content, texts)
    found = [texts[k] for k in places if 0 <= k < len(texts)]
    return prefix + ("\n\n".join(found) if found else _NONE)


def _places(content: str, texts: list[str]) -> list[int]:
    if match := re.search(rf"the {_NUMBER} and the {_NUMBER} ", content):
        return [int(number) - 1 for number in match.groups()]
    if match := re.search(rf"the {_NUMBER} to last ", content):
        return [len(texts) - int(match.group(1))]
    if "unchanged, the last " in content:
        return [len(texts) - 1]
    if match := re.search(r"version (\d+) of", content):
        return [int(match.group(1)) - 1]
    if match := re.search(r"that has the word (\w+) that", content):
        word = match.group(1)
        return [k for k, one in enumerate(texts) if word in re.findall(r"\w+", one.lower())]
    if match := re.search(rf"unchanged, the {_NUMBER} ", content):
        return [int(match.group(1)) - 1]
    number = re.search(r"(?:Nummer|numéro|número|第) (\d+)", content)
    assert number, content
    return [int(number.group(1)) - 1]


def solve_blind(messages: Messages, random: Random) -> str:
    """Answer with any text of the right form and topic."""
    *before, quest = messages
    prefix, form, topic = read_quest(quest["content"])
    texts = [text for a, b, text in read_texts(before) if (a, b) == (form, topic)]
    return prefix + random.choice(texts)
