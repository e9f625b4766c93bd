"""Opening what a TokensStage wrote: token files together with the packs of one context.

The sources of the corpus come from `open_sources`. Two derived ones, `long` and `planted`, are
opened by name alone, so that a mixture which does not ask for them sees neither, and validation on
held-out text stays what it was. `long` copies nothing of them: it is a second pack over each
source, and the pack of the sequences that curation made for long contexts alone.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fivefold.artifact import read_json
from fivefold.data.config import LONG
from fivefold.data.packing import Pack, load_pack
from fivefold.data.token_file import TokenFile, open_token_file
from fivefold.errors import ConfigError, MissingFileError


@dataclass(frozen=True)
class PackedSource:
    """A tokenised source and the rows that it makes."""

    name: str
    tokens: TokenFile
    pack: Pack
    weight: np.ndarray | None = None
    """Factor of the loss of each token as a label, 0 for none: float32 [tokens]; None: all 1."""
    epochs: float = 1.0
    """Times that curation wants it seen, which a mixture without weights of its own follows."""
    group: str = ""
    """`long` or `planted` where it stands behind that share of a mixture."""

    @property
    def pack_tokens(self) -> int:
        """Tokens in the rows of one pass."""
        return int(self.pack.length.sum(dtype=np.int64))

    @property
    def natural_tokens(self) -> float:
        """Tokens, those of a derived source's own rows, times `epochs`."""
        return self.epochs * (self.pack_tokens if self.group else self.tokens.manifest.tokens)


def open_sources(
    directory: Path, context_tokens: int, split: str = "train", *, verify: bool = False
) -> list[PackedSource]:
    """Open what a TokensStage wrote into `directory` for one context; `split` is train or heldout.

    Raises:
        MissingFileError: the directory is not a TokensStage's, or has no pack for the context.
        CorruptFileError, MismatchError: files are damaged or do not belong together.
    """
    summary, folder = read_summary(directory), directory / split
    epochs = summary.get("epochs", {})
    return [
        replace(
            _open_source(folder, name, name, context_tokens, verify), epochs=epochs.get(name, 1.0)
        )
        for name in summary["sources"][split]
    ]


def open_derived(
    directory: Path, context_tokens: int, group: str, split: str = "train", *, verify: bool = False
) -> list[PackedSource]:
    """Open the sources behind `long` or `planted`, which `open_sources` leaves out.

    Raises:
        ConfigError: the directory has none for the context.
        CorruptFileError, MismatchError: files are damaged or do not belong together.
    """
    summary, folder = read_summary(directory), directory / split
    made = summary.get(group, {})
    if split not in made.get(str(context_tokens), {}):
        key = "tokens.long_contexts" if group == LONG else "tokens.planted.contexts"
        raise ConfigError(
            expected=f"the source `{group}` for {context_tokens} tokens among the {split} files",
            found=f"it for the contexts {', '.join(made) or 'none'}",
            fix=f"Add {context_tokens} to `{key}`, or take `{group}` out of the mixture's `shares`",
        )
    return [
        replace(
            _open_source(
                folder, name, f"{name}.{LONG}" if group == LONG else name, context_tokens, verify
            ),
            group=group,
        )
        for name in made[str(context_tokens)][split]
    ]


def _open_source(
    folder: Path, tokens_name: str, name: str, context_tokens: int, verify: bool
) -> PackedSource:
    tokens = open_token_file(folder / tokens_name, verify=verify)
    pack = load_pack(folder / f"{name}.{context_tokens}.npz", tokens.manifest.sha256)
    return PackedSource(name, tokens, pack)


def read_summary(directory: Path) -> dict[str, Any]:
    """Return the content of `tokens.json`.

    Raises:
        MissingFileError: the directory is not a TokensStage's.
    """
    summary = read_json(directory / "tokens.json")
    if summary is None:
        raise MissingFileError(
            expected=f"`tokens.json` in `{directory}`",
            found="no such file, or one that is cut",
            fix="Give the directory of a recipe's `tokens` stage",
        )
    return summary
