"""The pre-training stage: build the model, train it on packed rows, export it.

Trained dense: `index_topk` is set to the longest context, so that every engine that opens the
checkpoint runs it as it was trained. The stage that adapts a model to sparse attention writes the
real value.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from fivefold.data.loader import Rows, open_loader, read_heldout_rows
from fivefold.errors import MismatchError
from fivefold.models.config import ModelConfig
from fivefold.models.convert import write_checkpoint
from fivefold.models.generate import Sampling, generate
from fivefold.models.initialise import initialise
from fivefold.models.transformer import Transformer
from fivefold.stage import StageContext, write_json
from fivefold.text.tokenizer import Tokenizer, load_tokenizer
from fivefold.train.balance import BalanceTracker
from fivefold.train.config import PretrainConfig
from fivefold.train.evaluate import Validation, evaluate
from fivefold.train.loop import Progress, train
from fivefold.train.optimizer import HybridOptimizer

logger = logging.getLogger(__name__)


def pretrain(
    config: PretrainConfig, inputs: Mapping[str, Path], out: Path, context: StageContext
) -> None:
    """Train from `inputs["tokens"]` and `inputs["tokenizer"]`; writes `out/checkpoint`.

    Raises:
        MismatchError: the tokenizer has more ids than the model has embeddings.
    """
    tokenizer = load_tokenizer(inputs["tokenizer"])
    shape = _model_config(config.model, tokenizer)
    torch.set_num_threads(context.threads)
    model = Transformer(shape)
    initialise(model, shape, torch.Generator().manual_seed(context.seed))
    model.to(context.device)
    # The indexer takes no part in dense training: without a gradient it needs no optimizer state.
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".indexer." not in name)
    optimizer = HybridOptimizer(model.named_parameters(), shape, config.optimizer)
    loader = open_loader(inputs["tokens"], config.context_tokens, seed=context.seed)
    heldout = read_heldout_rows(inputs["tokens"], config.context_tokens, tokenizer.pad_id)
    probe = _spread_rows(heldout, config.validation_rows)
    trained = sum(p.numel() for p in model.parameters())
    logger.info(
        "%s parameters, %s tokens in rows of %d, on %s with %d threads",
        f"{trained:,}",
        f"{config.total_tokens:,}",
        config.context_tokens,
        context.device,
        context.threads,
    )

    def validate_on(rows: Rows) -> Validation:
        return evaluate(
            model,
            rows,
            tokenizer.token_bytes(),
            microbatch_rows=config.microbatch_rows,
            chunk_tokens=config.loss_chunk_tokens,
        )

    progress = train(
        model,
        optimizer,
        loader,
        config,
        context,
        out,
        validate=lambda: validate_on(probe),
        sample=_sampler(model, tokenizer, config, context.seed),
    )
    final = validate_on(heldout)
    context.metrics.write(
        progress.step,
        {
            "train/tokens": progress.tokens,
            "validation/final_loss_nats": final.loss_nats,
            "validation/final_bits_per_byte": final.bits_per_byte,
        },
        shown=f"all held-out documents: {final.bits_per_byte:.3f} bits/byte",
    )
    write_checkpoint(model, out / "checkpoint")
    tokenizer.save_pretrained(out / "checkpoint")
    _write_page(model, progress, out)


def _model_config(model: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """Fit the model to the tokenizer and make its selection dense."""
    if tokenizer.vocab_size > model.vocab_size:
        raise MismatchError(
            expected=f"a tokenizer of at most {model.vocab_size} ids, the model's `vocab_size`",
            found=f"{tokenizer.vocab_size} ids",
            fix="Set `pretrain.model.vocab_size` and `tokenizer.tokenizer.vocab_size` alike",
        )
    return model.model_copy(
        update={
            "index_topk": model.max_position_embeddings,
            "eos_token_id": tokenizer.stop_ids,
            "pad_token_id": tokenizer.pad_id,
        }
    )


def _spread_rows(rows: Rows, count: int) -> Rows:
    """Take `count` rows spread evenly over all, the same ones at every validation."""
    chosen = np.linspace(0, len(rows.ids) - 1, min(count, len(rows.ids))).round().astype(np.int64)
    return Rows(
        rows.ids[chosen], rows.document[chosen], rows.positions[chosen], rows.source[chosen]
    )


def _sampler(
    model: Transformer, tokenizer: Tokenizer, config: PretrainConfig, seed: int
) -> Callable[[int, float], list[dict[str, str]]]:
    """Return the function that continues the configured prompts."""

    def sample(step: int, bits_per_byte: float) -> list[dict[str, str]]:
        samples = []
        for prompt in config.sample_prompts:
            ids = torch.tensor([tokenizer.prompt_ids(prompt)], device=model.lm_head.weight.device)
            generator = torch.Generator(ids.device).manual_seed(seed)
            new = generate(
                model,
                ids,
                config.sample_tokens,
                Sampling(temperature=0.8, top_p=0.9),
                generator,
                tokenizer.stop_ids,
            )
            label = f"step {step}, {bits_per_byte:.2f} bits/byte"
            text = tokenizer.decode(new[0], skip_special=True)
            samples.append({"label": label, "prompt": prompt, "text": text})
        return samples

    return sample


def _write_page(model: Transformer, progress: Progress, out: Path) -> None:
    """Write the report's blocks: samples along training, expert load, router bias."""
    page = out / "page"
    write_json(
        page / "10_samples.json",
        {
            "kind": "samples",
            "title": "The same prompts along training",
            "note": "Temperature 0.8, top-p 0.9, the same seed each time.",
            "samples": progress.samples,
        },
    )
    tracker = BalanceTracker(model)
    names = [name.removesuffix(".mlp.gate") for name in tracker.names]
    experts = len(progress.expert_load[0]) if progress.expert_load else 0
    heatmap = {
        "kind": "heatmap",
        "x_label": "expert",
        "y_label": "router",
        "x": [str(expert) for expert in range(experts)],
        "y": names,
    }
    write_json(
        page / "20_expert_load.json",
        {
            **heatmap,
            "title": "Expert load, 1 = its fair share",
            "note": "Running mean over the last steps of training.",
            "values": [[share * experts for share in shares] for shares in progress.expert_load],
            "center": 1.0,
        },
    )
    write_json(
        page / "21_router_bias.json",
        {
            **heatmap,
            "title": "Router bias for balance",
            "note": "Added to an expert's score when experts are chosen, not to its weight.",
            "values": [router.e_score_correction_bias.tolist() for router in tracker.routers],
            "center": 0.0,
        },
    )
