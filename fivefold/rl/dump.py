"""Rollout dumps: what a batch trained on, whole enough to train on it again.

`state/rollouts/batch_N.npz` holds every stream of every sample, ragged streams end to end, and one
JSON object with what is not a number a token. Samples read back give the same gradients to the last
bit on the same weights. The newest few are kept, so that a long run does not fill the disk.

Beside what trained stand the rewards of all that was judged, dropped groups included: how often a
problem was solved must not be counted on those alone that were solved half of the time.

Surprise: dtypes are kept as they are. An advantage rounded to fp32 would give another gradient.
"""

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fivefold.artifact import atomic_write, remove
from fivefold.errors import CorruptFileError
from fivefold.rl.rollout import Rollout
from fivefold.rl.sample import Sample

_STREAMS = (
    "ids",
    "loss_mask",
    "rollout_logprobs",
    "versions",
    "teacher_logprobs",
    "advantages",
    "weights",
    "routing",
)
_FIELDS = ("group", "reward", "source", "copies", "is_truncated", "prompt_tokens", "detail")


class Judged(NamedTuple):
    """What one rollout was worth."""

    group: str
    source: str
    reward: float


def write_dump(
    directory: Path,
    batch: int,
    samples: Sequence[Sample],
    facts: Mapping[str, Any],
    kept: int,
    judged: Sequence[Sample] | None = None,
) -> None:
    """Write the samples of a batch and drop all dumps but the newest `kept`.

    `facts` are JSON values about the batch: its policy version, the updates before it. `judged` are
    all rollouts with a reward, those that do not train included; None: the samples themselves.

    Raises:
        StorageError: the disk is full.
    """
    arrays: dict[str, np.ndarray] = {}
    rows = [{name: getattr(sample, name, None) for name in _FIELDS} for sample in samples]
    for name in _STREAMS:
        found = [getattr(sample, name, None) for sample in samples]
        given = [stream for stream in found if stream is not None]
        for row, stream in zip(rows, found, strict=True):
            row[f"has_{name}"] = stream is not None
        if given:
            arrays[name] = np.concatenate(given)
    arrays["lengths"] = np.array([len(sample.ids) for sample in samples], np.int64)
    rewards = [
        Judged(sample.group, sample.source, sample.reward)
        for sample in (samples if judged is None else judged)
        if sample.reward is not None
    ]
    document = json.dumps({"batch": batch, **facts, "samples": rows, "judged": rewards})
    arrays["document"] = np.frombuffer(document.encode(), np.uint8)
    with atomic_write(directory / f"batch_{batch:08d}.npz") as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    for outdated in dumped_batches(directory)[: -kept or None]:
        remove(directory / f"batch_{outdated:08d}.npz")


def dumped_batches(directory: Path) -> list[int]:
    """Return the batches of which there are dumps, ascending."""
    names = [path.name for path in directory.glob("batch_*.npz")]
    return sorted(int(name[6:14]) for name in names if re.fullmatch(r"batch_\d{8}\.npz", name))


def read_dump(path: Path) -> tuple[list[Sample], dict[str, Any]]:
    """Return the samples of a dump and its facts.

    Raises:
        CorruptFileError: it is missing, cut or no dump.
    """
    samples, _, facts = _read(path)
    return samples, facts


def read_judged(path: Path) -> list[Judged]:
    """Return the rewards of a dump's batch, those of groups that did not train included.

    Raises:
        CorruptFileError: it is missing, cut or no dump.
    """
    return _read(path)[1]


def _read(path: Path) -> tuple[list[Sample], list[Judged], dict[str, Any]]:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        facts = json.loads(arrays.pop("document").tobytes())
        samples = _split(arrays, facts.pop("samples"))
        judged = [Judged(*fields) for fields in facts.pop("judged")]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptFileError(
            expected=f"a whole rollout dump at `{path}`",
            found=f"{type(error).__name__}: {error}"[:200],
            fix="Choose another dump of the same run",
        ) from error
    return samples, judged, facts


def _split(arrays: Mapping[str, np.ndarray], rows: Sequence[dict[str, Any]]) -> list[Sample]:
    """Cut the streams into samples."""
    places = dict.fromkeys(_STREAMS, 0)
    samples: list[Sample] = []
    for row, length in zip(rows, arrays["lengths"].tolist(), strict=True):
        fields = {name: row[name] for name in _FIELDS if row[name] is not None}
        fields.setdefault("reward", None)
        for name in _STREAMS:
            if row[f"has_{name}"]:
                begin = places[name]
                places[name] = begin + length
                fields[name] = arrays[name][begin : begin + length]
        samples.append(Rollout(**fields))
    return samples
