"""What `fivefold data train-classifier --kind embedding` and `world_knowledge` do."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fivefold.config import Config, apply_overrides
from fivefold.data.web.classifier import train_vector_classifier
from fivefold.data.web.config import EmbedConfig, HeadConfig, Kind, ReferenceConfig
from fivefold.data.web.reference import find_references
from fivefold.data.web.sample import draw_evenly
from fivefold.log import progress_on

_MAX_CHARACTERS = ReferenceConfig().max_characters


def run_vector_training(
    kind: Kind,
    positive: Sequence[str],
    negative: Sequence[str],
    out: Path,
    overrides: Sequence[str],
    console: Console,
    cache_dir: str = "~/.cache/fivefold",
) -> None:
    """Train a classifier over vectors into `out` and print how well it tells the two apart.

    Overrides are of `embed` and `head`, for example `embed.dimensions=512`.

    Raises:
        ConfigError: too few documents, or an unknown key.
        FivefoldError: as the sources and the embedder do.
    """
    configs: dict[str, Config] = {"embed": EmbedConfig(), "head": HeadConfig()}
    changed = apply_overrides(configs, overrides)
    embed, head = changed["embed"], changed["head"]
    assert isinstance(embed, EmbedConfig), "overrides keep a config's type"
    assert isinstance(head, HeadConfig), "overrides keep a config's type"
    good, other = (
        draw_evenly(find_references(names, cache_dir), head.max_documents, _MAX_CHARACTERS)
        for names in (positive, negative)
    )
    with progress_on(console)("train", 1, "models"):
        trained = train_vector_classifier(kind, good, other, out, embed, head)
    console.out(
        f"trained on {trained.positives:,} positive and {trained.negatives:,} negative documents; "
        f"AUC {trained.auc:.4f} and calibration error {trained.calibration_error:.4f} on folds "
        "that were not seen",
        highlight=False,
    )
    shown = ", ".join(
        f"{share}%: {trained.quantiles[10 * share]:.4f}" for share in (10, 50, 90, 99)
    )
    console.out(f"scores below which so many negatives lie: {shown}", highlight=False)
    console.out(f"model: {out}", highlight=False)
