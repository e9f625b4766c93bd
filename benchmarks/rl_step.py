"""A whole step of RL against TRL's `GRPOTrainer`: sample, judge, advantages, update, serve.

Both sides answer 4 prompts of 16 words 8 times with 32 words each and take one update on them. The
reward is the share of words with an `a` in the decoded response. Ours is the synchronous loop's own
batch, with its engine, comparison of trainer and engine, rollout dump and metrics, on MLA with
experts; the peer is a dense Llama of as many parameters as ours uses a token. Both take AdamW;
`--optimizer muon` gives ours Muon, as the recipes have it, and `--prompt` makes prompts longer.
Ours runs in fp32 unless `--dtype` says otherwise, the peer in the faster of fp32 and bf16 autocast.
TRL's recomputation of activations, on by default, is off: it would only slow the peer.

Surprise: the peer's side is TRL's own `training_step`, which also samples, with clipping and the
optimizer's step beside it; the bookkeeping of its trainer's loop is left out, to its favour.
`--profile` prints where a step of ours goes instead of a comparison.
"""

import argparse
import asyncio
import contextlib
import cProfile
import logging
import pstats
import statistics
import string
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from harness import add_options, compare, time_call
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from fivefold.metrics import StageMetrics
from fivefold.models.config import ModelConfig
from fivefold.models.initialise import initialise
from fivefold.models.preset import preset as shape
from fivefold.models.transformer import Transformer
from fivefold.rl.collect import Collector
from fivefold.rl.examine import Examiner
from fivefold.rl.learner import PolicyLearner
from fivefold.rl.loop import Players, take_batch
from fivefold.rl.loop_config import EvaluationConfig, LoopConfig, SamplingConfig, UpdateConfig
from fivefold.rl.preset import grpo
from fivefold.rl.progress import Progress
from fivefold.rl.prompt import Judgement, Prompt, PromptStream
from fivefold.rl.rollout import EngineCompleter
from fivefold.serve.config import EngineConfig
from fivefold.serve.engine import Engine
from fivefold.stage import ProgressTask, StageContext
from fivefold.train.compute import ComputeModel
from fivefold.train.optimizer_config import OptimizerConfig
from fivefold.train.pretrain import freeze_indexers

WORDS, PROMPTS, GROUP, NEW_TOKENS = 512, 4, 8, 32
LETTERS = string.ascii_lowercase
LR = 1e-3


def main() -> None:
    """Measure steps a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--steps", type=int, default=4, help="steps of each side in a pair")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw", help="of ours")
    parser.add_argument("--prompt", type=int, default=16, help="words of a prompt")
    parser.add_argument("--profile", action="store_true", help="profile ours, and compare nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    words = build_tokenizer()
    with (
        tempfile.TemporaryDirectory() as folder,
        open_ours(words, Path(folder), options) as ours,
    ):
        if options.profile:
            profile(ours, options.steps)
            return
        peer = faster_peer(words, Path(folder), options.prompt)
        sizes = {"ours_active_parameters": ours.active, "peer_parameters": peer.parameters}
        assert abs(ours.active / peer.parameters - 1) < 0.05, f"models of other sizes: {sizes}"
        detail: dict[str, Any] = sizes | {
            "ours_dtype": options.dtype,
            "peer_dtype": peer.dtype,
            "ours_optimizer": options.optimizer,
            "prompt_tokens": options.prompt,
        }

        def our_turn() -> None:
            ours.take(options.steps)
            detail["ours_sampling_share"] = ours.sampling_share

        def peer_turn() -> None:
            peer.take(options.steps)
            detail["peer_sampling_share"] = peer.sampling_share

        # `compare` reads the dict when it writes the summary: after the last call.
        compare(
            f"rl_step_{options.optimizer}_prompt{options.prompt}",
            our_turn,
            peer_turn,
            work=options.steps,
            unit="steps/s",
            options=options,
            detail=detail,
        )


def build_tokenizer() -> Tokenizer:
    """Return one id a word: `<pad>`, `<eos>` and words of two letters, all that fit."""
    pairs = [first + second for first in LETTERS for second in LETTERS]
    words = ["<pad>", "<eos>", *pairs[: WORDS - 2]]
    vocabulary = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def share_of_a(text: str) -> float:
    """Return the share of words with an `a`."""
    words = text.split()
    return sum("a" in word for word in words) / max(len(words), 1)


def prompt_ids(index: int, tokens: int) -> list[int]:
    """Return the `tokens` ids of prompt `index`."""
    generator = torch.Generator().manual_seed(index)
    return torch.randint(2, WORDS, (tokens,), generator=generator).tolist()


class Ours:
    """The synchronous loop, a batch at a time."""

    def __init__(self, model: Transformer, step: Callable[[], dict[str, float]]) -> None:
        """Take batches by calling `step`."""
        self._step = step
        self.active = active_parameters(model)
        self._shares: list[float] = []

    @property
    def sampling_share(self) -> float:
        """Median share of a step's time before training, over all calls."""
        return round(statistics.median(self._shares), 3)

    def take(self, steps: int) -> None:
        """Take so many batches."""
        for _ in range(steps):
            values = self._step()
            sampling, training = values["rl/sample_seconds"], values["rl/train_seconds"]
            self._shares.append(sampling / (sampling + training))


class _Source:
    """Prompts of random words."""

    name = "letter"

    def __init__(self, words: Tokenizer, prompt_tokens: int) -> None:
        self._words, self._prompt_tokens = words, prompt_tokens

    def prompt(self, index: int) -> Prompt:
        ids = tuple(prompt_ids(index, self._prompt_tokens))
        return Prompt(ids, f"letter#{index}", self.name, self._judge)

    async def _judge(self, response: Sequence[int]) -> Judgement:
        return Judgement(share_of_a(self._words.decode(list(response))), "scored")


class _NoBar:
    def advance(self, amount: float = 1, **shown: str) -> None:
        """Show nothing."""


@contextlib.contextmanager
def _no_track(description: str, total: float, unit: str) -> Iterator[ProgressTask]:
    yield _NoBar()


def our_model() -> Transformer:
    """Return 4 layers of MLA, 3 of them with experts; no MTP layer, which no policy trains."""
    config: ModelConfig = shape(
        "mini",
        vocab_size=WORDS,
        num_hidden_layers=4,
        intermediate_size=640,
        num_nextn_predict_layers=0,
        max_position_embeddings=1024,
        eos_token_id=(),
    )
    model = Transformer(config)
    initialise(model, config, torch.Generator().manual_seed(0))
    return model


def active_parameters(model: Transformer) -> int:
    """Return the parameters that one token uses; indexers included, which select for it."""
    config = model.config
    idle = 1 - config.num_experts_per_tok / config.n_routed_experts
    stacked = [value for name, value in model.named_parameters() if ".experts." in name]
    routed = sum(value.numel() for value in stacked if value.ndim == 3)
    return round(sum(value.numel() for value in model.parameters()) - idle * routed)


@contextlib.contextmanager
def open_ours(words: Tokenizer, folder: Path, options: argparse.Namespace) -> Iterator[Ours]:
    """Build model, learner and engine as the stage `rl` does, and keep one event loop open."""
    config = LoopConfig(
        algorithm=grpo(GROUP),
        sampling=SamplingConfig(batch_prompts=PROMPTS, max_new_tokens=NEW_TOKENS),
        evaluation=EvaluationConfig(prompts=0),
        update=UpdateConfig(
            lr=LR,
            compute_dtype=options.dtype,
            optimizer=OptimizerConfig(matrices=options.optimizer, weight_decay=0.0),
        ),
        engine=EngineConfig(block_tokens=8),
    )
    model = our_model()
    freeze_indexers(model)
    compute = ComputeModel(model, getattr(torch, options.dtype))
    learner = PolicyLearner(model, compute, config)
    metrics = StageMetrics(folder / "metrics.jsonl", "rl")
    context = StageContext(0, "cpu", torch.get_num_threads(), metrics, _no_track)
    progress = Progress()
    with asyncio.Runner() as runner:
        completer = EngineCompleter(Engine(compute.model, config.engine))
        collector = Collector(
            completer, PromptStream([_Source(words, options.prompt)], [1.0]), config, 0
        )
        examiner = Examiner(completer, [], config, 0)
        players = Players(
            learner, completer, collector, examiner, lambda ids: words.decode(list(ids))
        )
        yield Ours(
            model, lambda: runner.run(take_batch(players, config, context, folder, progress))
        )


class Peer:
    """TRL's trainer, a step at a time."""

    def __init__(
        self,
        words: Tokenizer,
        folder: Path,
        dtype: str,
        prompt_tokens: int,
        most_steps: int = 1000,
    ) -> None:
        """Build the trainer, its batches and its optimizer; bf16 is TRL's own autocast."""
        self.dtype = dtype
        prompts = [prompt_ids(index, prompt_tokens) for index in range(PROMPTS * most_steps)]
        rows = [words.decode(ids) for ids in prompts]
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left"
        )
        torch.manual_seed(0)
        model = _peer_model()
        self._trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [share_of_a(text) for text in completions],
            args=_peer_settings(folder, dtype, most_steps),
            train_dataset=Dataset.from_dict({"prompt": rows}),
            processing_class=tokenizer,
        )
        trainer = self._trainer
        trainer.create_optimizer_and_scheduler(most_steps)
        trainer.current_gradient_accumulation_steps = 1
        self._optimizer: Any = trainer.optimizer
        self._batches = iter(trainer.get_train_dataloader())
        self.parameters = sum(value.numel() for value in model.parameters())
        self._sampling, self._whole = list[float](), list[float]()
        self._generate = trainer._generate_and_score_completions
        trainer._generate_and_score_completions = self._timed_sampling

    @property
    def sampling_share(self) -> float:
        """Median share of a step's time before its forward and backward, over all calls."""
        pairs = zip(self._sampling, self._whole, strict=True)
        return round(statistics.median(sampling / whole for sampling, whole in pairs), 3)

    def take(self, steps: int) -> None:
        """Sample and train so many times."""
        trainer: Any = self._trainer
        model = trainer.model
        for _ in range(steps):
            begin = time.perf_counter()
            model.train()
            trainer.training_step(model, next(self._batches), None)
            torch.nn.utils.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
            self._optimizer.step()
            self._optimizer.zero_grad()
            trainer.state.global_step += 1
            self._whole.append(time.perf_counter() - begin)

    def _timed_sampling(self, inputs: Any) -> Any:
        begin = time.perf_counter()
        outputs = self._generate(inputs)
        self._sampling.append(time.perf_counter() - begin)
        return outputs


def faster_peer(words: Tokenizer, folder: Path, prompt_tokens: int) -> Peer:
    """Return the peer in the faster of fp32 and bf16 autocast, TRL's default."""
    peers = [Peer(words, folder, dtype, prompt_tokens) for dtype in ("float32", "bfloat16")]
    for peer in peers:
        peer.take(1)
    return min(
        peers, key=lambda peer: min(time_call(lambda: peer.take(1)).wall_seconds for _ in range(3))
    )


def _peer_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def _peer_settings(folder: Path, dtype: str, most_steps: int) -> GRPOConfig:
    return GRPOConfig(
        output_dir=str(folder / "peer"),
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=NEW_TOKENS,
        # As ours, which has no stop token: the work of a step is the same each time.
        generation_kwargs={"min_new_tokens": NEW_TOKENS},
        loss_type="grpo",
        learning_rate=LR,
        max_steps=most_steps,
        gradient_checkpointing=False,
        bf16=dtype == "bfloat16",
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        shuffle_dataset=False,
    )


def profile(ours: Ours, steps: int) -> None:
    """Print the functions of the main thread that take the most time of their own."""
    ours.take(2)
    profiler = cProfile.Profile()
    profiler.runcall(ours.take, steps)
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    main()
