"""Reading conversations: every fault names its line, prompts stay on one side of the split."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.conversation_file import (
    TrainingConversation,
    choose_split,
    conversation_files,
    read_conversations,
)
from fivefold.errors import ConfigError, CorruptFileError, FivefoldError, MissingFileError
from fivefold.text.conversation import Message

GOOD = {
    "messages": [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4", "reasoning_content": "Two twice."},
    ]
}


def write(path: Path, *lines: object) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def test_fields_of_a_line_are_read_and_default_to_the_file(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    full = {**GOOD, "tools": tools, "source": "sums", "weight": 0.5, "split": "heldout", "meta": {}}
    plain, whole = read_conversations(write(tmp_path / "maths.jsonl", GOOD, "", full))
    assert (plain.source, plain.weight, plain.split, plain.tools) == ("maths", 1.0, None, ())
    assert plain.place == "maths.jsonl:1"
    assert [message.role for message in plain.messages] == ["user", "assistant"]
    assert (whole.source, whole.weight, whole.split) == ("sums", 0.5, "heldout")
    assert whole.tools[0].name == "add"
    assert whole.place == "maths.jsonl:3"


@pytest.mark.parametrize(
    ("line", "kind", "says"),
    [
        ('{"messages": [', CorruptFileError, "x.jsonl:2"),
        ("[1]", CorruptFileError, "a list"),
        ('{"messages": ' + "[" * 100_000, CorruptFileError, "x.jsonl:2"),
        ({}, ConfigError, r"x.jsonl:2.messages"),
        ({**GOOD, "weights": 2}, ConfigError, "`weight`"),
        ({**GOOD, "weight": 0}, ConfigError, "greater than 0"),
        ({**GOOD, "weight": float("nan")}, ConfigError, "x.jsonl:2.weight"),
        ({**GOOD, "source": "../etc"}, ConfigError, "x.jsonl:2.source"),
        ({**GOOD, "split": "test"}, ConfigError, "x.jsonl:2.split"),
        ({**GOOD, "tools": [{}]}, ConfigError, "x.jsonl:2 tools"),
        ({"messages": [{"role": "bot", "content": ""}]}, ConfigError, r"messages\[0\]"),
        ({"messages": []}, ConfigError, "no message"),
        ({"messages": GOOD["messages"][:1]}, ConfigError, "x.jsonl:2.*user"),
    ],
)
def test_bad_line_is_named(
    tmp_path: Path, line: object, kind: type[FivefoldError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        list(read_conversations(write(tmp_path / "x.jsonl", GOOD, line)))


def test_bytes_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"messages": "\xff"}\n')
    with pytest.raises(CorruptFileError, match=r"x.jsonl:2.*UnicodeDecodeError"):
        list(read_conversations(path))


def test_directory_without_conversations_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").touch()
    with pytest.raises(MissingFileError, match="none"):
        conversation_files(tmp_path)


def talk(prompt: str, answer: str) -> TrainingConversation:
    user, assistant = (
        Message(role="user", content=prompt),
        Message(role="assistant", content=answer),
    )
    return TrainingConversation((user, assistant), "s")


@given(st.text(max_size=20), st.lists(st.text(max_size=8), min_size=2, max_size=4), st.integers(0))
def test_answers_to_one_prompt_fall_on_one_side(prompt: str, answers: list[str], seed: int) -> None:
    assert len({choose_split(talk(prompt, answer), 0.5, seed) for answer in answers}) == 1


def test_share_of_prompts_is_held_out() -> None:
    held = sum(choose_split(talk(str(i), ""), 0.2, 3) == "heldout" for i in range(2000))
    assert 340 < held < 460  # 400 expected, 3.3 standard deviations
    assert all(choose_split(talk(str(i), ""), 0.0, 3) == "train" for i in range(50))
