"""Stop strings and turns do not depend on where tokens cut the text."""

from hypothesis import given
from hypothesis import strategies as st
from live_server import byte_tokenizer

from fivefold.serve.reader import ChatReader, StopMatcher, TextReader, stop_rule
from fivefold.text.event import ContentDelta

letters = st.text(alphabet="ab灯", max_size=30)
stop_lists = st.lists(st.text(alphabet="ab灯", min_size=1, max_size=4), min_size=1, max_size=3)


def first_complete(text: str, stops: list[str]) -> tuple[str, bool]:
    """Return the text before the stop string that is complete first; the longest, if several."""
    for end in range(len(text) + 1):
        matched = [stop for stop in stops if text[:end].endswith(stop)]
        if matched:
            return text[: end - max(map(len, matched))], True
    return text, False


@given(letters, stop_lists, st.data())
def test_a_matcher_cuts_where_the_first_stop_is_complete(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    matcher = StopMatcher(stops)
    shown = ""
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        shown += matcher.push(text[begin:end])
        # Never shown: what may still become a stop string.
        assert first_complete(text, stops)[0].startswith(shown)
    shown += matcher.flush()
    assert (shown, matcher.matched is not None) == first_complete(text, stops)


@given(letters, stop_lists)
def test_the_engines_reader_ends_the_output_at_the_same_id(text: str, stops: list[str]) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(text)
    ends = stop_rule(TextReader(tokenizer, stops))
    end = next((count for count in range(1, len(ids) + 1) if ends(ids[:count])), None)
    expected, is_stopped = first_complete(text, stops)
    assert (end is not None) == is_stopped
    reader = TextReader(tokenizer, stops)
    assert "".join(map(reader.push, ids[:end])) + reader.finish() == expected


@given(letters, letters, stop_lists)
def test_a_chat_is_cut_in_its_answer_alone(thought: str, answer: str, stops: list[str]) -> None:
    tokenizer = byte_tokenizer()
    ids = [*tokenizer.encode(thought), tokenizer.id_of("</think>"), *tokenizer.encode(answer)]
    reader = ChatReader(tokenizer, stops, tools=(), is_thinking=True)
    events = [event for token in ids for event in reader.push(token)] + reader.finish()
    shown = "".join(event.text for event in events if isinstance(event, ContentDelta))
    assert shown == first_complete(answer, stops)[0]


def test_halves_of_characters_are_held_back() -> None:
    tokenizer = byte_tokenizer()
    reader = TextReader(tokenizer)
    assert [reader.push(token) for token in tokenizer.encode("灯")] == ["", "", "灯"]
    assert [reader.push(token) for token in tokenizer.encode("灯")[:2]] == ["", ""]
    assert reader.finish() == "\ufffd"
