"""The stage as a whole: it learns an answer, resumes bit for bit, and keeps to its epochs."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import build

from fivefold.config import validate
from fivefold.data.config import MixtureConfig, WeightPoint
from fivefold.data.conversation_config import ConversationsConfig
from fivefold.data.conversation_rows import open_conversation_rows
from fivefold.data.loader import RowLoader
from fivefold.data.mixture import Mixture
from fivefold.errors import ConfigError, MismatchError
from fivefold.metrics import StageMetrics, read_metrics
from fivefold.models.convert import read_checkpoint, write_checkpoint
from fivefold.models.generate import Sampling, generate
from fivefold.models.preset import preset
from fivefold.report.block import draw_block
from fivefold.stage import ProgressTask, StageContext
from fivefold.text.bpe import train_tokenizer
from fivefold.text.chat_template import CHAT_TEMPLATE
from fivefold.text.config import TokenizerConfig
from fivefold.text.conversation import Message
from fivefold.text.template import render_prompt
from fivefold.text.tokenizer import Tokenizer
from fivefold.train.optimizer_config import OptimizerConfig
from fivefold.train.sft import check_template, plan_epochs, sft
from fivefold.train.sft_config import SftConfig
from fivefold.train.stages import SftStage

VOCABULARY = 460
SHAPE = preset(
    "nano",
    vocab_size=VOCABULARY,
    hidden_size=64,
    num_hidden_layers=2,
    n_routed_experts=4,
    num_experts_per_tok=2,
    index_topk=16,
    max_position_embeddings=128,
)
ANSWER = "The keeper counted 1234 waves."
CONFIG = SftConfig(
    conversations=ConversationsConfig(context_tokens=48, heldout_share=0.0),
    epochs={"sea": 41, "hill": 4},
    batch_rows=4,
    microbatch_rows=2,
    peak_lr=2e-2,
    final_lr=2e-3,
    validation_steps=20,
    checkpoint_steps=3,
    sample_count=2,
    sample_tokens=6,
    optimizer=OptimizerConfig(ns_dtype="float32", weight_decay=0.0),
)


class KilledError(Exception):
    """Stands for the end of a process."""


class _Bar:
    def __init__(self, steps: float) -> None:
        self.left = steps

    def advance(self, amount: float = 1, **shown: str) -> None:
        if "loss" in shown:
            self.left -= 1
        if self.left < 0:
            raise KilledError


def make_context(directory: Path, steps: float = float("inf")) -> StageContext:
    """Return a context whose training dies after so many steps."""

    @contextmanager
    def track(description: str, total: float, unit: str) -> Iterator[ProgressTask]:
        yield _Bar(steps)

    return StageContext(5, "cpu", 1, StageMetrics(directory / "metrics.jsonl", "sft"), track)


def say(question: str, answer: str, **fields: Any) -> dict[str, Any]:
    asked = {"role": "user", "content": question}
    return {"messages": [asked, {"role": "assistant", "content": answer}], **fields}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = ["The keeper counted 1234 waves, then slept. What did the keeper do on the hill? "] * 9
    return Tokenizer(train_tokenizer(texts, TokenizerConfig(vocab_size=VOCABULARY)))


@pytest.fixture(scope="module")
def inputs(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    shape = SHAPE.model_copy(update={"vocab_size": tokenizer.vocab_size})
    write_checkpoint(build(shape, deviation=0.02), root / "start" / "checkpoint")
    tokenizer.save_pretrained(root / "start" / "checkpoint")
    tokenizer.save_pretrained(root / "tokenizer")
    write(root / "conversations", "sea", say("What did the keeper do?", ANSWER))
    hills = [say(f"hill {n}?", f"On the hill {n}.") for n in range(6)]
    hills[0]["messages"][1]["exclusions"] = [{"part": "content", "end": 2, "reason": "style"}]
    held = say("hill 9?", "On the hill 9.", split="heldout")
    write(root / "conversations", "hill", *hills, held)
    return {name: root / name for name in ("start", "tokenizer", "conversations")}


def write(directory: Path, source: str, *lines: Mapping[str, Any]) -> None:
    directory.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / f"{source}.jsonl").write_text(text)


@pytest.fixture(scope="module")
def trained(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was never interrupted."""
    run = tmp_path_factory.mktemp("trained")
    SftStage("sft", CONFIG).execute(inputs, run / "sft", make_context(run))
    return run


def answer(checkpoint: Path, tokenizer: Tokenizer, question: str) -> str:
    model = read_checkpoint(checkpoint, dtype=torch.float32, device="cpu").eval()
    prompt = [Message(role="user", content=question)]
    ids = torch.tensor([render_prompt(prompt, tokenizer, enable_thinking=False)])
    greedy = Sampling(temperature=0)
    return tokenizer.decode(generate(model, ids, 30, greedy, None, tokenizer.stop_ids)[0])


def test_model_learns_to_answer_and_to_stop(trained: Path, tokenizer: Tokenizer) -> None:
    said = answer(trained / "sft" / "checkpoint", tokenizer, "What did the keeper do?")
    assert said == ANSWER


def test_record_and_page_tell_the_training(trained: Path) -> None:
    records = read_metrics(trained / "metrics.jsonl")
    steps = [record for record in records if "train/loss_nats" in record]
    assert steps[-1]["train/loss_nats"] < 0.1 * steps[0]["train/loss_nats"]
    assert all(record["train/answer_tokens"] > 0 for record in steps)
    assert "validation/final_loss_nats" in records[-1]
    page = trained / "sft" / "page"
    table = json.loads((page / "02_conversations.json").read_text())
    assert [row[:2] for row in table["rows"]] == [
        ["hill", "heldout"],
        ["hill", "train"],
        ["sea", "train"],
    ]
    for block in sorted(page.iterdir()):
        assert "cannot be drawn" not in draw_block(block), block
    samples = json.loads((page / "10_samples.json").read_text())["samples"]
    assert [sample["prompt"] for sample in samples] == ["hill 9?\n"] * 2


def test_indexers_and_router_biases_stay(trained: Path, inputs: dict[str, Path]) -> None:
    before = read_checkpoint(inputs["start"] / "checkpoint", dtype=torch.float32, device="cpu")
    after = read_checkpoint(trained / "sft" / "checkpoint", dtype=torch.float32, device="cpu")
    old, new = before.state_dict(), after.state_dict()
    stays = {n for n in old if ".indexer." in n or n.endswith("e_score_correction_bias")}
    assert stays
    assert all(torch.equal(old[name], new[name]) for name in stays)
    moved = [name for name in old.keys() - stays if not torch.equal(old[name], new[name])]
    assert any(".mtp." in name or name.startswith("mtp.") for name in moved)
    assert "lm_head.weight" in moved


def test_killed_run_goes_on_bit_for_bit(
    trained: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    for steps in (4, 3):  # dies at step 5, having saved step 3; then at step 7, having saved 6
        with pytest.raises(KilledError):
            sft(CONFIG, inputs, tmp_path / "sft", make_context(tmp_path, steps))
    sft(CONFIG, inputs, tmp_path / "sft", make_context(tmp_path))
    name = "checkpoint/model.safetensors"
    assert (tmp_path / "sft" / name).read_bytes() == (trained / "sft" / name).read_bytes()
    curves = [
        [
            (record["step"], record["train/loss_nats"])
            for record in read_metrics(run / "metrics.jsonl")
            if "train/loss_nats" in record
        ]
        for run in (tmp_path, trained)
    ]
    assert curves[0] == curves[1]


def test_epochs_give_each_source_as_often_as_asked(trained: Path, inputs: dict[str, Path]) -> None:
    sources = open_conversation_rows(trained / "sft" / "state" / "rows", 48, "train")
    config, mixture = plan_epochs(CONFIG, sources)
    rows = {source.name: source.pack.rows for source in sources}
    total = 41 * rows["sea"] + 4 * rows["hill"]
    assert config.total_tokens == 48 * total
    loader = RowLoader(sources, pad_id=0, seed=1, mixture=mixture)
    for _ in range(total):
        loader.next_rows(1)
    assert loader.epochs == {"sea": 41, "hill": 4}
    batches = [
        record["train/batch_tokens"] // 48
        for record in read_metrics(trained / "metrics.jsonl")
        if "train/batch_tokens" in record
    ]
    assert sum(batches) == total
    assert set(batches[:-1]) == {4}
    assert batches[-1] == total % 4 != 0


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any))
def test_whole_weights_are_met_exactly_after_their_sum(counts: list[int]) -> None:
    """What `epochs` rests on: rows in proportion at any moment, and exact at the end."""
    names = [f"source{number}" for number in range(len(counts))]
    weights = {n: (WeightPoint(weight=c),) for n, c in zip(names, counts, strict=True)}
    mixture = Mixture(MixtureConfig(weights=weights), dict.fromkeys(names, 1), 8)
    chosen = mixture.choose(sum(counts))
    assert np.bincount(chosen, minlength=len(counts)).tolist() == counts


def test_epochs_of_nothing_are_refused(trained: Path) -> None:
    sources = open_conversation_rows(trained / "sft" / "state" / "rows", 48, "train")
    for epochs, says in (({"see": 1}, "see"), ({"sea": 0, "hill": 0}, "at least one row")):
        with pytest.raises(ConfigError, match=says):
            plan_epochs(CONFIG.model_copy(update={"epochs": epochs}), sources)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"total_tokens": 100, "epochs": {"a": 1}}, "both"),
        ({"mixture": {"weights": {"a": [{"weight": 1}]}}}, "beside `mixture`"),
        ({"total_tokens": 100, "mixture": {"shares": {"long": 0.5}}}, "shares"),
        ({"epochs": {"a": -1}}, "at least 0"),
        ({"conversations": {"contextt_tokens": 3}}, "context_tokens"),
    ],
)
def test_config_that_cannot_work_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        validate(SftConfig, fields, where="sft")


def test_mixture_weights_decide_the_rows(trained: Path) -> None:
    sources = open_conversation_rows(trained / "sft" / "state" / "rows", 48, "train")
    weights = {"sea": [{"weight": 3}], "hill": [{"weight": 1}]}
    config = validate(
        SftConfig, {"total_tokens": 4800, "mixture": {"weights": weights}}, where="sft"
    )
    same, mixture = plan_epochs(config, sources)
    assert same.total_tokens == 4800
    rows = RowLoader(sources, pad_id=0, seed=1, mixture=mixture).next_rows(100)
    assert np.bincount(rows.source).tolist() == [25, 75]


def test_checkpoint_of_another_template_or_tokenizer_is_refused(
    inputs: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    check_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(CHAT_TEMPLATE + "{{ 'more' }}")
    with pytest.raises(MismatchError, match="whose stage `sft` has `accept_other_template`"):
        check_template(tmp_path)
    with pytest.raises(MismatchError, match=r"\. Do as I say; where the template"):
        check_template(tmp_path, fix="Do as I say")
    (tmp_path / "chat_template.jinja").unlink()
    check_template(tmp_path)
    other = Tokenizer(train_tokenizer(["a dog dug a bog " * 50], TokenizerConfig(vocab_size=426)))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(MismatchError, match="tokenizer"):
        sft(CONFIG, {**inputs, "tokenizer": tmp_path / "other"}, tmp_path, make_context(tmp_path))


def test_context_beyond_the_model_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"conversations": ConversationsConfig(context_tokens=129)})
    with pytest.raises(ConfigError, match="129 tokens"):
        sft(config, inputs, tmp_path, make_context(tmp_path))
