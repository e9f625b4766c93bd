"""What the tokens of packed rows cost in a training step, place by place.

A token costs a constant, something for each key that it sees (dense attention; with sparse
attention only the indexer's scores), and something for each key that it keeps. All three come from
the FLOPs of `plan.flops`. Documents do not see each other, so that the work of a row is quadratic
within its documents alone: equal numbers of tokens are not equal work.
"""

from dataclasses import dataclass

import numpy as np

from fivefold.models.config import ModelConfig
from fivefold.plan.config import TrainingStage
from fivefold.plan.flops import index_pair_flops, pair_flops, training_flops
from fivefold.plan.parameters import has_own_indexer


@dataclass(frozen=True)
class TokenWork:
    """FLOPs of one token in a training step, forward and backward, all layers and MTP depths."""

    fixed: float
    """Whatever it sees."""
    visible_key: float
    """More for each key that it sees, its own among them."""
    kept_key: float
    """More for each key that it keeps."""
    most_kept: int
    """Most keys that it keeps."""

    def of_documents(self, documents: np.ndarray) -> np.ndarray:
        """Return the FLOPs of each token, fp64 of [rows, tokens].

        `documents` holds the document of each token of each row, as `Rows.document` does; padding
        (-1) counts as a document, as it does in attention.
        """
        visible = visible_keys(documents)
        kept = np.minimum(visible, self.most_kept)
        return self.fixed + self.visible_key * visible + self.kept_key * kept


def token_work(config: ModelConfig, stage: TrainingStage) -> TokenWork:
    """Return the work of a token of this model in a training stage.

    A backward pass costs two forward passes; the indexer's loss reads all visible keys twice in
    warm-up, and the kept keys twice in sparse training, as in `plan.flops.training_flops`, which
    counts a token alone, and so all that does not depend on what it sees.
    """
    layers = list(range(config.num_hidden_layers))
    if config.num_nextn_predict_layers and stage != "warmup":
        layers += [config.num_hidden_layers] * config.fivefold.mtp_depths
    indexers = sum(has_own_indexer(config, layer) for layer in layers)
    score = float(indexers * index_pair_flops(config))
    # A token alone sees and keeps one key.
    alone = training_flops(config, 1, stage=stage).total
    core = float(len(layers) * pair_flops(config, absorbed=False))
    if stage == "warmup":
        return TokenWork(alone - core - 3 * score, core + 3 * score, 0.0, 0)
    if stage == "dense" or not config.has_indexer:
        return TokenWork(alone - 3 * core, 3 * core, 0.0, 0)
    kept = 3.0 * len(layers) * pair_flops(config, absorbed=True) + 2 * score
    return TokenWork(alone - 3 * core - 3 * score, score, kept, config.index_topk)


def visible_keys(documents: np.ndarray) -> np.ndarray:
    """Return how many keys each token sees: its place in its document, from 1; [rows, tokens]."""
    places = np.arange(documents.shape[1])
    begins = np.ones(documents.shape, dtype=bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    first = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    return places - first + 1
