"""The pre-training stage: build the model, train it on packed rows, export it.

Trained dense: `index_topk` is set to the longest context, so that every engine that opens the
checkpoint runs it as it was trained. The stage that adapts a model to sparse attention writes the
real value.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from fivefold.data.corpus_page import mixture_page
from fivefold.data.loader import open_loader, read_heldout_rows
from fivefold.errors import MismatchError
from fivefold.models.config import ModelConfig
from fivefold.models.transformer import Transformer
from fivefold.parallel.build import InitialWeights, build_model
from fivefold.stage import StageContext
from fivefold.text.tokenizer import Tokenizer, load_tokenizer
from fivefold.train.config import PretrainConfig
from fivefold.train.evaluate import Examiner, record_final
from fivefold.train.loop import Learner, Phase, train
from fivefold.train.losses import language_objective
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.outcome import write_outcome
from fivefold.train.sample import make_sampler
from fivefold.train.schedule import batch_rows
from fivefold.train.staged_loss import StagedLanguageLoss

logger = logging.getLogger(__name__)


def pretrain(
    config: PretrainConfig, inputs: Mapping[str, Path], out: Path, context: StageContext
) -> None:
    """Train from `inputs["tokens"]` and `inputs["tokenizer"]`; writes `out/checkpoint`.

    Raises:
        MismatchError: the tokenizer has more ids than the model has embeddings.
    """
    torch.set_num_threads(context.threads)
    tokenizer = load_tokenizer(inputs["tokenizer"])
    shape = _fit_to_tokenizer(config.model, tokenizer)
    model = build_model(shape, InitialWeights(context.seed), context.ranks, context.device)
    freeze_indexers(model)
    rows = read_heldout_rows(inputs["tokens"], config.context_tokens, tokenizer.pad_id)
    examiner = Examiner(model, rows, tokenizer.token_bytes(), config, config.microbatch_rows)
    loader = open_loader(inputs["tokens"], config.context_tokens, seed=context.seed)
    phase = Phase(
        until_tokens=config.total_tokens,
        loader=loader,
        rows_at=lambda tokens: batch_rows(tokens, config, config.microbatch_rows),
        microbatch_rows=config.microbatch_rows,
        prepare=lambda: None,
        validate=lambda: {**examiner.on_some_rows(), **mixture_page(out / "page", "0", loader)},
    )
    logger.info(
        "%s parameters, %s tokens in rows of %d, on %s with %d threads",
        f"{sum(p.numel() for p in model.parameters()):,}",
        f"{config.total_tokens:,}",
        config.context_tokens,
        context.device,
        context.threads,
    )
    learner = Learner(
        model,
        HybridOptimizer(model.named_parameters(), shape, config.optimizer),
        language_objective(config),
        StagedLanguageLoss(shape, config),
        make_sampler(model, tokenizer, config, context.seed),
    )
    progress = train(learner, [phase], config, context, out / "state")
    if not context.ranks.is_first:
        return
    record_final(examiner, progress.step, progress.tokens, context.metrics)
    write_outcome(model, tokenizer, progress, out)


def freeze_indexers(model: Transformer) -> None:
    """Take the indexers out of training: dense attention gives them no gradient."""
    for name, parameter in model.named_parameters():
        if ".indexer." in name:
            parameter.requires_grad_(False)


def _fit_to_tokenizer(model: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
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
