"""`fivefold serve` and `fivefold chat`: the start line, signals, turns that are found again."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from live_server import byte_tokenizer, chain_model, random_model
from tiny_engine import assert_idle

from fivefold.errors import ConfigError, MismatchError
from fivefold.models.convert import write_checkpoint
from fivefold.serve.config import EngineConfig
from fivefold.serve.dialogue import Dialogue, is_base_model
from fivefold.serve.engine import Engine
from fivefold.serve.request import SamplingParams
from fivefold.serve.served import open_served

SAYS = ["<think>", "o", "k", "</think>", *"yes", "<|user|>"]
GREEDY = SamplingParams(temperature=0, max_new_tokens=30)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "sft" / "checkpoint"
    write_checkpoint(chain_model(SAYS), directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def engine_of(pool_tokens: int = 4096) -> Engine:
    config = EngineConfig(block_tokens=4, pool_tokens=pool_tokens)
    return Engine(chain_model(SAYS), config)


def said(talk: Dialogue, line: str) -> tuple[str, str]:
    """Return the thinking and the answer."""
    pieces = list(talk.reply(line))
    thought = "".join(text for is_thinking, text in pieces if is_thinking)
    return thought, "".join(text for is_thinking, text in pieces if not is_thinking)


def test_a_second_turn_computes_only_what_is_new() -> None:
    engine = engine_of()
    talk = Dialogue(engine, byte_tokenizer(), GREEDY, is_base=False)
    assert said(talk, "a rather long question") == ("ok", "yes")
    first = talk.prompt_tokens
    assert said(talk, "and?") == ("ok", "yes")
    # All of the first turn, what was generated included, but for the unfinished block.
    held = first + len("ok") + 1 + len("yes") + 1
    assert talk.cached_tokens > held - 1 - 4
    assert talk.prompt_tokens == held + len("and?") + 2
    assert_idle(engine)


def test_without_thinking_the_answer_comes_at_once() -> None:
    talk = Dialogue(engine_of(), byte_tokenizer(), GREEDY, is_base=False, enable_thinking=False)
    assert said(talk, "well?") == ("", "yes")


def test_a_base_model_continues_each_line_alone() -> None:
    talk = Dialogue(engine_of(), byte_tokenizer(), GREEDY, is_base=True)
    assert said(talk, "y") == ("", "es")
    assert said(talk, "ye") == ("", "s")
    assert talk.prompt_tokens == 4


def test_a_reply_that_is_cut_short_is_kept_as_far_as_it_came() -> None:
    engine = engine_of()
    talk = Dialogue(engine, byte_tokenizer(), GREEDY, is_base=False)
    reply = talk.reply("hello")
    next(reply)
    reply.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert_idle(engine)
    assert said(talk, "again") == ("ok", "yes")


def test_a_conversation_that_outgrows_the_context_begins_anew() -> None:
    talk = Dialogue(engine_of(pool_tokens=32), byte_tokenizer(), GREEDY, is_base=False)
    with pytest.raises(ConfigError, match="the context"):
        said(talk, "x" * 40)
    assert said(talk, "x") == ("ok", "yes")


def test_the_stage_tells_a_base_model(checkpoint: Path) -> None:
    assert not is_base_model(checkpoint)
    marker = checkpoint.parent / "finished.json"
    for kind, expected in (("PretrainStage", True), ("SftStage", False)):
        marker.write_text(json.dumps({"kind": kind}))
        assert is_base_model(checkpoint) == expected
    marker.unlink()


def test_a_foreign_tokenizer_is_refused(tmp_path: Path) -> None:
    model = random_model()
    smaller = model.config.model_copy(update={"vocab_size": 400})
    write_checkpoint(type(model)(smaller), tmp_path / "small")
    byte_tokenizer().save_pretrained(tmp_path / "small")
    with pytest.raises(MismatchError, match="420 ids"):
        open_served(tmp_path / "small", device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_says_where_answers_and_ends_in_order(checkpoint: Path, number: int) -> None:
    command = [sys.executable, "-m", "fivefold", "serve", str(checkpoint)]
    with subprocess.Popen(
        [*command, "--port", "0", "--device", "cpu", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = process.stdout.readline()
            found = re.search(r"serving sft at (http://127\.0\.0\.1:\d+)/v1", line)
            assert found, line
            curl = process.stdout.readline()
            assert curl.startswith("try: curl http://127.0.0.1:")
            body = re.search(r"-d '(.*)'", curl)
            assert body
            url = found.group(1)
            answer = httpx.post(f"{url}/v1/chat/completions", json=json.loads(body.group(1)))
            assert answer.status_code == 200
            slow = {"input_ids": [1], "sampling_params": {"max_new_tokens": 600}}
            with httpx.stream("POST", f"{url}/generate", json={**slow, "stream": True}) as reply:
                lines = reply.iter_lines()
                next(lines)
                process.send_signal(number)
                # What runs is allowed to finish.
                assert list(lines)[-2] == "data: [DONE]"
            assert process.wait(30) == 0
            assert process.stdout.read().strip() == "stopped"
            assert process.stderr.read() == ""
        finally:
            process.kill()


@pytest.mark.slow
def test_chat_talks_through_the_terminal(checkpoint: Path) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "fivefold", "chat", str(checkpoint), "--temperature", "0"],
        input="hello\nagain\n\n",
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert "A new conversation" in done.stdout
    assert done.stdout.count("okyes") == 2
    assert time.monotonic() - began < 100
