"""What a gradient stage leaves behind: the checkpoint and the report's blocks."""

from pathlib import Path

from fivefold.artifact import write_json
from fivefold.models.convert import write_checkpoint
from fivefold.models.transformer import Transformer
from fivefold.text.tokenizer import Tokenizer
from fivefold.train.balance import BalanceTracker
from fivefold.train.progress import Progress
from fivefold.train.sample import SAMPLING


def write_outcome(model: Transformer, tokenizer: Tokenizer, progress: Progress, out: Path) -> None:
    """Write `out/checkpoint`, a whole Hugging Face directory, and `out/page`."""
    write_checkpoint(model, out / "checkpoint")
    tokenizer.save_pretrained(out / "checkpoint")
    _write_samples(progress, out / "page")
    _write_experts(model, progress, out / "page")


def _write_samples(progress: Progress, page: Path) -> None:
    if progress.samples:
        block = {
            "kind": "samples",
            "title": "The same prompts along training",
            "note": f"Temperature {SAMPLING.temperature}, top-p {SAMPLING.top_p}, "
            "the same seed each time.",
            "samples": progress.samples,
        }
        write_json(page / "10_samples.json", block)


def _write_experts(model: Transformer, progress: Progress, page: Path) -> None:
    tracker = BalanceTracker(model)
    if not progress.expert_load:
        return
    experts = len(progress.expert_load[0])
    heatmap = {
        "kind": "heatmap",
        "x_label": "expert",
        "y_label": "router",
        "x": [str(expert) for expert in range(experts)],
        "y": [name.removesuffix(".mlp.gate") for name in tracker.names],
    }
    load = {
        **heatmap,
        "title": "Expert load, 1 = its fair share",
        "note": "Running mean over the last steps of training.",
        "values": [[share * experts for share in shares] for shares in progress.expert_load],
        "center": 1.0,
    }
    bias = {
        **heatmap,
        "title": "Router bias for balance",
        "note": "Added to an expert's score when experts are chosen, not to its weight.",
        "values": [router.e_score_correction_bias.tolist() for router in tracker.routers],
        "center": 0.0,
    }
    write_json(page / "20_expert_load.json", load)
    write_json(page / "21_router_bias.json", bias)
