"""Conversations to rows: whole samples, each learned turn once, an account that adds up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_builder import silent_track
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.data.conversation_config import ConversationsConfig
from fivefold.data.conversation_file import TrainingConversation
from fivefold.data.conversation_ledger import NOTHING_LEARNED, TOO_LONG, mark_text
from fivefold.data.conversation_rows import open_conversation_rows, write_conversation_rows
from fivefold.data.conversation_sample import WHOLE_TURN, conversation_to_samples
from fivefold.data.loader import RowLoader, assemble_all
from fivefold.errors import ConfigError, CorruptFileError, MismatchError
from fivefold.text.conversation import Exclusion, Message, read_messages
from fivefold.text.template import render
from fivefold.text.tokenizer import Tokenizer

CONFIG = ConversationsConfig(context_tokens=48, heldout_share=0.0)
HELD = {
    "messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}],
    "split": "heldout",
}


def chat(*texts: str, **fields: Any) -> dict[str, Any]:
    """Return a line whose texts are said in turn by user and assistant; `t|x` thinks t."""
    messages = []
    for place, text in enumerate(texts):
        thought, bar, said = text.rpartition("|")
        message = {"role": "assistant" if place % 2 else "user", "content": said}
        messages.append({**message, "reasoning_content": thought} if bar else message)
    return {"messages": messages, **fields}


def write_lines(directory: Path, *lines: dict[str, Any], name: str = "chat") -> Path:
    directory.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return directory


def build(
    tmp_path: Path,
    tokenizer: Tokenizer,
    *lines: dict[str, Any],
    config: ConversationsConfig = CONFIG,
) -> Path:
    conversations = write_lines(tmp_path / "in", *lines)
    out = tmp_path / "rows"
    write_conversation_rows(conversations, out, tmp_path / "page", tokenizer, config, silent_track)
    return out


def accounts(rows: Path) -> dict[tuple[str, str], dict[str, Any]]:
    entries = json.loads((rows / "rows.json").read_text())["accounts"]["sources"]
    return {(entry["split"], entry["source"]): entry for entry in entries}


def test_rows_hold_each_rendered_conversation_whole_with_its_mask(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    lines = [chat(f"word {'la ' * n}?", f"answer {n}", weight=n + 1) for n in range(12)]
    rows = build(tmp_path, tokenizer, *lines, HELD)
    found = assemble_all(open_conversation_rows(rows, 48, "train"), tokenizer.pad_id)
    assert found.weight is not None
    pieces = set()
    for row, document in zip(*np.nonzero(found.positions == 0), strict=True):
        number = found.document[row, document]
        if number < 0:
            continue
        place = found.document[row] == number
        assert found.positions[row][place].tolist() == list(range(place.sum()))
        pieces.add((tuple(found.ids[row][place]), tuple(found.weight[row][place])))
    expected = set()
    for n, line in enumerate(lines):
        whole = render(read_messages(line["messages"]), tokenizer, close=True)
        expected.add((tuple(whole.ids), tuple((n + 1.0) * learned for learned in whole.loss_mask)))
    assert pieces == expected
    assert len(found.ids) < len(lines)  # some share a row
    assert not found.weight[found.document < 0].any()


def test_loader_gives_the_weights_of_its_rows(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lines = [chat(f"say {n}", f"it is {n}") for n in range(9)]
    more = [chat(f"tell {n}", f"well, {n}", source="other") for n in range(9)]
    rows = build(tmp_path, tokenizer, *lines, *more, HELD)
    sources = open_conversation_rows(rows, 48, "train")
    assert [source.name for source in sources] == ["chat", "other"]
    loader = RowLoader(sources, pad_id=tokenizer.pad_id, seed=3)
    wanted = {}
    for number, source in enumerate(sources):
        every = assemble_all([source], tokenizer.pad_id)
        assert every.weight is not None
        for ids, weight in zip(every.ids, every.weight, strict=True):
            wanted[number, ids.tobytes()] = weight
    given_rows = loader.next_rows(8)
    assert given_rows.weight is not None
    for ids, number, weight in zip(
        given_rows.ids, given_rows.source, given_rows.weight, strict=True
    ):
        assert np.array_equal(wanted[int(number), ids.tobytes()], weight)


def test_state_of_other_weights_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lines = [chat("a", "b"), HELD]
    rows = build(tmp_path, tokenizer, *lines)
    state = RowLoader(open_conversation_rows(rows, 48, "train"), pad_id=0, seed=1).state_dict()
    lines[0] = {**lines[0], "weight": 2.0}
    again = RowLoader(
        open_conversation_rows(build(tmp_path, tokenizer, *lines), 48, "train"), pad_id=0, seed=1
    )
    with pytest.raises(MismatchError, match="`tokens`"):
        again.load_state_dict(state)


def test_too_long_and_unlearned_samples_are_dropped_with_reason_and_never_cut(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    silent = chat("hush", "no")
    silent["messages"][1]["loss"] = False
    rows = build(tmp_path, tokenizer, chat("x", "y"), chat("x", "long " * 99), silent, HELD)
    account = accounts(rows)["train", "chat"]
    assert account["conversations"] == account["samples"] == 3
    assert account["kept"] == 1
    assert account["dropped"] == {TOO_LONG: 1, NOTHING_LEARNED: 1}
    places = json.loads((rows / "rows.json").read_text())["accounts"]["dropped_places"]
    assert places == {TOO_LONG: ["chat.jsonl:2"], NOTHING_LEARNED: ["chat.jsonl:3"]}
    assert len(assemble_all(open_conversation_rows(rows, 48, "train"), 0).ids) == 1


def test_sample_of_exactly_the_row_fits(tmp_path: Path, tokenizer: Tokenizer) -> None:
    line = chat("x", "Whoever you may be, good evening.")
    size = len(render(read_messages(line["messages"]), tokenizer, close=True).ids)
    for context, dropped in ((size - 1, {}), (size - 2, {TOO_LONG: 1})):
        config = CONFIG.model_copy(update={"context_tokens": context})
        rows = build(tmp_path, tokenizer, line, chat("x", "y"), HELD, config=config)
        assert accounts(rows)["train", "chat"]["dropped"] == dropped


def test_thinking_mode_decides_samples_by_source(tmp_path: Path, tokenizer: Tokenizer) -> None:
    line = chat("one", "hm|1", "two", "so|2")
    config = CONFIG.model_copy(update={"thinking_of": {"agent": "preserved"}})
    rows = build(tmp_path, tokenizer, line, {**line, "source": "agent"}, HELD, config=config)
    found = accounts(rows)
    assert found["train", "chat"]["samples"] == 2
    assert found["train", "agent"]["samples"] == 1
    # Both learn the same tokens, each once; a fork repeats what it reads.
    assert found["train", "chat"]["learned_tokens"] == found["train", "agent"]["learned_tokens"]
    assert found["train", "chat"]["tokens"] > found["train", "agent"]["tokens"]
    wrong = CONFIG.model_copy(update={"thinking_of": {"agnet": "preserved"}})
    with pytest.raises(ConfigError, match="`thinking_of`"):
        build(tmp_path, tokenizer, line, HELD, config=wrong)


@pytest.mark.parametrize("thinking", ["preserved", "interleaved"])
def test_excluded_tokens_are_counted_by_reason(tokenizer: Tokenizer, thinking: Any) -> None:
    bad = "The sum is five. No: the sum is four."
    span = Exclusion(part="content", end=16, reason="wrong sum")
    late = Exclusion(part="content", begin=4, end=16, reason="tone")
    first = Message(role="assistant", content=bad, reasoning_content="hm", exclusions=(span, late))
    last = Message(role="assistant", content="Bye.", loss=False)
    ask, thank = Message(role="user", content="2+2"), Message(role="user", content="Thanks")
    talk = TrainingConversation((ask, first, thank, last), "s")
    samples = conversation_to_samples(talk, tokenizer, thinking)
    counts = {
        reason: sum(int(s.excluded[reason].sum()) for s in samples if reason in s.excluded)
        for reason in ("wrong sum", "tone", WHOLE_TURN)
    }
    ids = tokenizer.encode(bad)
    ends = np.cumsum([len(tokenizer.decode_bytes([token])) for token in ids])
    begins = np.concatenate([[0], ends[:-1]])
    assert counts["wrong sum"] == (begins < 16).sum()
    assert counts["tone"] == ((begins < 16) & (ends > 4)).sum()
    assert counts[WHOLE_TURN] == len(tokenizer.encode("Bye.")) + 1  # and the role that ends it
    for sample in samples:
        for is_excluded in sample.excluded.values():
            assert not (is_excluded & sample.is_learned).any()


words = st.text("ab ?.\n", min_size=1, max_size=6)


@given(
    turns=st.lists(
        st.tuples(words, st.none() | words, words, st.booleans()), min_size=1, max_size=4
    ),
    cuts=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["x", "y"])), max_size=3),
)
@settings(max_examples=60)
def test_every_assistant_token_is_learned_or_excluded_for_a_reason_once(
    tokenizer: Tokenizer, turns: list, cuts: list
) -> None:
    messages: list[Message] = []
    for asked, thought, said, loss in turns:
        exclusions = tuple(
            Exclusion(part="content", begin=begin, reason=reason)
            for begin, reason in cuts
            if begin < len(said)
        )
        messages.append(Message(role="user", content=asked))
        messages.append(
            Message(
                role="assistant",
                content=said,
                reasoning_content=thought,
                loss=loss,
                exclusions=exclusions,
            )
        )
    talk = TrainingConversation(tuple(messages), "s")
    plain = [m.model_copy(update={"loss": True, "exclusions": ()}) for m in messages]
    own = sum(render(plain, tokenizer, clear_thinking=False, close=True).loss_mask)
    for thinking in ("preserved", "interleaved"):
        samples = conversation_to_samples(talk, tokenizer, thinking)
        excluded = [
            np.logical_or.reduce([np.zeros(len(s.ids), bool), *s.excluded.values()])
            for s in samples
        ]
        learned = sum(int(s.is_learned.sum()) for s in samples)
        assert learned + sum(int(mask.sum()) for mask in excluded) == own


def test_marked_text_shows_what_is_learned(tokenizer: Tokenizer) -> None:
    span = Exclusion(part="content", end=3, reason="typo")
    talk = TrainingConversation(
        (
            Message(role="user", content="Hi"),
            Message(role="assistant", content="bad good", exclusions=(span,)),
        ),
        "s",
    )
    (sample,) = conversation_to_samples(talk, tokenizer, "preserved")
    text = mark_text(sample, tokenizer)
    assert text.startswith("[gMASK]<sop><|user|>Hi<|assistant|></think>⟦typo: bad")
    assert text.endswith("good<|user|>»")


def test_page_tells_the_account(tmp_path: Path, tokenizer: Tokenizer) -> None:
    line = chat("x", "bad good")
    line["messages"][1]["exclusions"] = [{"part": "content", "end": 3, "reason": "typo"}]
    build(tmp_path, tokenizer, line, chat("x", "long " * 99), HELD)
    table = json.loads((tmp_path / "page" / "02_conversations.json").read_text())
    by_split = {row[1]: row for row in table["rows"]}
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
    assert by_split["train"][-2].startswith("typo: ")
    assert by_split["train"][-1] == f"{TOO_LONG}: 1"
    text = json.loads((tmp_path / "page" / "03_conversation_samples.json").read_text())["text"]
    assert "⟦typo: bad" in text


def test_rows_are_made_once_and_anew_when_anything_changed(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    rows = build(tmp_path, tokenizer, chat("x", "y"), HELD)
    before = (rows / "rows.json").stat().st_mtime_ns
    build(tmp_path, tokenizer, chat("x", "y"), HELD)
    assert (rows / "rows.json").stat().st_mtime_ns == before
    build(tmp_path, tokenizer, chat("x", "z"), HELD)
    assert (rows / "rows.json").stat().st_mtime_ns > before


def test_nothing_to_train_or_validate_on_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="validate on"):
        build(tmp_path, tokenizer, chat("x", "y"))
    with pytest.raises(ConfigError, match=r"all of them dropped.*longer than the context"):
        build(tmp_path, tokenizer, chat("x", "long " * 99), HELD)
    with pytest.raises(ConfigError, match="train on"):
        build(tmp_path, tokenizer, HELD)


def test_damaged_weights_are_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = build(tmp_path, tokenizer, chat("x", "y"), HELD)
    path = rows / "train" / "chat.weight.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CorruptFileError, match=r"chat\.weight\.npy"):
        open_conversation_rows(rows, 48, "train")
    np.save(path, np.ones(3, dtype=np.float32))
    with pytest.raises(CorruptFileError, match=r"\(3,\)"):
        open_conversation_rows(rows, 48, "train")
