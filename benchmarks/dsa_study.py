"""Table and plots of `docs/experiments/dsa.md` from a finished run with an `adapt_dsa` stage.

Usage: `python benchmarks/dsa_study.py RUN_DIR docs/experiments`. Draws recall by layer over the
adaptation (`dsa_recall.svg`) and held-out bits per byte over all stages (`dsa_loss.svg`), and
prints the Markdown table of layers.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fivefold.artifact import read_json
from fivefold.metrics import read_metrics

Record = dict[str, Any]


def main() -> None:
    """Draw and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    records = list(read_metrics(options.run / "metrics.jsonl"))
    probes = [r for r in records if "index/recall_layer0" in r]
    draw_recall(probes, options.out / "dsa_recall.svg")
    draw_loss(records, options.out / "dsa_loss.svg")
    print_layers(probes)
    comparison = read_json(options.run / "adapt_dsa" / "page" / "05_sparse_against_dense.json")
    assert comparison is not None, "the adaptation has finished"
    for row in comparison["rows"]:
        print("| " + " | ".join(str(cell) for cell in row) + " |")


def layers_of(probe: Record) -> list[int]:
    """Return the layers that were probed."""
    prefix = "index/recall_layer"
    return sorted(int(name.removeprefix(prefix)) for name in probe if name.startswith(prefix))


def share(probe: Record, what: str, layer: int) -> float:
    """Return a mass over the most that as many keys can hold."""
    return probe[f"index/{what}_layer{layer}"] / probe[f"index/best_layer{layer}"]


def print_layers(probes: Sequence[Record]) -> None:
    """Print each layer's recall over the best possible at every probe."""
    steps = [probe["step"] for probe in probes]
    print(
        "| layer | " + " | ".join(f"step {step}" for step in steps) + " | last keys, at the end |"
    )
    print("|---" * (len(steps) + 2) + "|")
    for layer in layers_of(probes[0]):
        cells = [f"{share(probe, 'recall', layer):.3f}" for probe in probes]
        cells.append(f"{share(probes[-1], 'recent', layer):.3f}")
        print(f"| {layer} | " + " | ".join(cells) + " |")


def draw_recall(probes: Sequence[Record], path: Path) -> None:
    """Draw recall over the best possible, a line a layer, and what the last keys hold."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    steps = [probe["step"] for probe in probes]
    for layer in layers_of(probes[0]):
        colour = f"C{layer}"
        recall = [share(probe, "recall", layer) for probe in probes]
        recent = [share(probe, "recent", layer) for probe in probes]
        axes.plot(steps, recall, "o-", color=colour, label=f"layer {layer}")
        axes.plot(steps, recent, ":", color=colour)
    axes.axhline(0.95, color="grey", linewidth=0.8)
    axes.set_xlabel("step of the adaptation")
    axes.set_ylabel("attention mass over the best possible")
    axes.legend(frameon=False, ncols=2, title="dotted: the last keys")
    figure.savefig(path)


def draw_loss(records: Sequence[Record], path: Path) -> None:
    """Draw held-out bits per byte over the tokens of all stages, dense and sparse."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    begin = {"pretrain": 0}
    finals = {r["stage"]: r["train/tokens"] for r in records if "validation/final_loss_nats" in r}
    begin["midtrain"] = finals["pretrain"]
    begin["dense_control"] = begin["adapt_dsa"] = begin["midtrain"] + finals["midtrain"]
    for stage, first in begin.items():
        found = [r for r in records if r["stage"] == stage and "validation/bits_per_byte" in r]
        tokens = [(first + r["train/tokens"]) / 1e6 for r in found]
        axes.plot(tokens, [r["validation/bits_per_byte"] for r in found], "o-", label=stage)
    axes.set_xlabel("tokens (millions)")
    axes.set_ylabel("held-out bits per byte, at the stage's context")
    axes.set_ylim(top=2.6)
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
