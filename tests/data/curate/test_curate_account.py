import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.curate.account import Account, QuarantineError, account_from_json, check_chain
from fivefold.data.curate.verdict import Edit, Verdict

EVENTS = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from(["keep", "drop.a", "drop.b", "edit", "fail"])),
    max_size=40,
)


def play(events: list[tuple[int, str]]) -> Account:
    account = Account()
    for number, event in events:
        text, name = f"text number {number}", f"{number:032x}"
        account.enter(text)
        if event == "fail":
            account.quarantine(name, "u", ValueError("no"))
        elif event == "edit":
            account.settle(name, "u", Verdict(text[:4], edits=(Edit("edit.x", 4, 6, text[4:6]),)))
        else:
            reason = "" if event == "keep" else event
            account.settle(name, "u", Verdict(text, reason, (0, 4)))
    account.check()
    return account


@given(EVENTS, st.integers(0, 40))
def test_accounts_of_tasks_add_up_to_that_of_the_whole(events: list[tuple[int, str]], cut: int):
    whole, parts = play(events), play(events[:cut])
    parts.add(account_from_json(play(events[cut:]).to_json()))
    parts.check()
    assert parts.to_json() == whole.to_json()
    assert whole.documents_in == len(events)


def test_a_lost_document_is_noticed():
    account = play([(1, "keep"), (2, "drop.a")])
    account.enter("gone")
    with pytest.raises(AssertionError, match="3 in, 1 out, 1 dropped"):
        account.check()


def test_samples_show_the_span_in_its_surroundings():
    account = Account()
    account.enter("before SPAM after")
    account.settle("a", "u", Verdict("before SPAM after", "drop.x", (7, 11)))
    (sample,) = account.samples["drop.x"]
    assert (sample["before"], sample["marked"], sample["after"]) == ("before ", "SPAM", " after")


def test_a_note_of_no_length_is_no_cut():
    account = Account()
    account.enter("text")
    note = Edit("metadata.realigned", 0, 0, "some/path.py")
    account.settle("a", "u", Verdict("te", edits=(note, Edit("edit.x", 2, 4, "xt"))))
    assert account.edits == {"metadata.realigned": 1, "edit.x": 1}
    assert account.edited_characters == {"metadata.realigned": 0, "edit.x": 2}
    assert account.samples["metadata.realigned"][0]["marked"] == "some/path.py"


def test_few_samples_are_kept_and_they_do_not_depend_on_the_order():
    events = [(number, "drop.a") for number in range(30)]
    samples = play(events).samples["drop.a"]
    assert len(samples) == 20
    assert play(events[::-1]).samples["drop.a"] == samples


def test_one_failure_in_a_thousand_is_borne_and_more_are_not():
    fine = play([(0, "fail"), *((number, "keep") for number in range(999))])
    check_chain([("heuristics", fine)], 0.001)
    worse = play([(0, "fail"), (1, "fail"), *((number, "keep") for number in range(998))])
    with pytest.raises(QuarantineError, match="ValueError: no") as caught:
        check_chain([("heuristics", worse)], 0.001)
    assert "2, the first at step `heuristics`" in str(caught.value)


def test_a_gap_between_steps_is_noticed():
    with pytest.raises(AssertionError, match="2 out of url, 1 into language"):
        check_chain(
            [("url", play([(1, "keep"), (2, "keep")])), ("language", play([(1, "keep")]))], 0.001
        )
