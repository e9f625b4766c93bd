"""Checkpoints as Hugging Face directories: released names in, released names out.

The name table is short because our module tree follows the released names: the main stack gains the
prefix `model.`, the MTP layer stands at index `num_hidden_layers`, and the stacked experts are cut
into one tensor an expert and projection. `write_checkpoint` makes a directory that transformers,
vLLM and SGLang open; `read_checkpoint` opens what they and the model's authors release, shard by
shard.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fivefold.artifact import atomic_write, write_json
from fivefold.errors import CorruptFileError, StorageError
from fivefold.models.config import ModelConfig, config_to_released, read_config
from fivefold.models.indexer import Indexer
from fivefold.models.moe import Router
from fivefold.models.stored import StoredWeights, Target
from fivefold.models.transformer import Transformer

logger = logging.getLogger(__name__)

_INDEX = "model.safetensors.index.json"
_FP32_NAMES = re.compile(r"e_score_correction_bias$|indexer\.weights_proj\.weight$")


def released_tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Yield every stored tensor under its released name, experts apart, without copying."""
    for name, tensor in model.state_dict().items():
        yield from released_pieces(name, tensor, model.config)


def released_pieces(
    name: str, tensor: Tensor, config: ModelConfig, first_expert: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """Yield what is stored of one of the model's tensors.

    Stacked experts may be a run of them, from `first_expert` on.
    """
    released = _released_name(name, config)
    if name.endswith("experts.gate_up"):
        for expert, both in enumerate(tensor, first_expert):
            gate, up = both.chunk(2, dim=0)
            yield f"{released}.{expert}.gate_proj.weight", gate
            yield f"{released}.{expert}.up_proj.weight", up
    elif name.endswith("experts.down"):
        for expert, down in enumerate(tensor, first_expert):
            yield f"{released}.{expert}.down_proj.weight", down
    else:
        yield released, tensor


def _released_name(name: str, config: ModelConfig) -> str:
    name = re.sub(r"(experts)\.(gate_up|down)$", r"\1", name)
    layer = f"model.layers.{config.num_hidden_layers}."
    if name.startswith("mtp."):
        inner = name.removeprefix("mtp.").removeprefix("block.")
        return layer + inner.replace("shared_head_norm", "shared_head.norm")
    return name if name.startswith("lm_head.") else f"model.{name}"


def write_checkpoint(
    model: Transformer,
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write `config.json`, `generation_config.json` and `model*.safetensors`, all or nothing.

    `dtype` casts the weights (None keeps them); the router bias and the indexer's head weights stay
    fp32. A directory that is already there is replaced at the end.

    Raises:
        StorageError: the disk is full or read-only.
    """
    with atomic_write(directory) as partial:
        partial.mkdir(parents=True)
        shards = _plan_shards(model, dtype, max_shard_bytes)
        total_bytes, weight_map = 0, {}
        for number, names in enumerate(shards, start=1):
            file = "model.safetensors"
            if len(shards) > 1:
                file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            chosen = set(names)
            tensors = {
                name: _cast(name, tensor, dtype).detach().cpu().contiguous().clone()
                for name, tensor in released_tensors(model)
                if name in chosen
            }
            _save_tensors(tensors, partial / file)
            weight_map.update(dict.fromkeys(names, file))
            total_bytes += sum(tensor.nbytes for tensor in tensors.values())
        if len(shards) > 1:
            index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
            write_json(partial / _INDEX, index)
        stored = str(dtype or model.lm_head.weight.dtype).removeprefix("torch.")
        write_json(partial / "config.json", {**config_to_released(model.config), "dtype": stored})
        write_json(partial / "generation_config.json", _generation_config(model.config))


def _save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        # The library reports the operating system's faults as its own.
        raise StorageError(
            expected=f"to be able to write `{file}`",
            found=str(error),
            fix="Free space, or choose another place; what stood there before is kept",
        ) from error


def _cast(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None or _FP32_NAMES.search(name) else tensor.to(dtype)


def _plan_shards(
    model: Transformer, dtype: torch.dtype | None, max_shard_bytes: int
) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, tensor in released_tensors(model):
        kept = tensor.dtype if dtype is None or _FP32_NAMES.search(name) else dtype
        size = tensor.numel() * kept.itemsize
        if shards[-1] and used + size > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _generation_config(config: ModelConfig) -> dict[str, object]:
    stops = list(config.stop_token_ids)
    return {
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 0.95,
        "eos_token_id": stops or None,
        "pad_token_id": config.pad_token_id,
    }


def read_checkpoint(
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    config: ModelConfig | None = None,
) -> Transformer:
    """Build the model of a Hugging Face directory and load its weights.

    `dtype` None keeps fp32 where the file holds fp32 and so on, by the output head's type. `config`
    replaces the directory's (a longer context, another selection), shapes permitting.

    Raises:
        MissingFileError: no such directory, config or weight file.
        CorruptFileError: a weight file is truncated, or tensors are missing.
        MismatchError: a tensor has another shape or type than the config says, or no place in it.
    """
    config = config or read_config(directory)
    stored = StoredWeights(directory)
    if dtype is None:
        dtype = _head_dtype(stored)
    config = stored.fitted(config)
    with torch.device("meta"):
        model = Transformer(config)
    model.to_empty(device=device)
    model.to(dtype)
    _restore_precision(model)
    stored.check_names({name for name, _ in released_tensors(model)}, config)
    stored.fill(
        Target(name, tensor, tuple(tensor.shape)) for name, tensor in released_tensors(model)
    )
    return model.eval()


def _restore_precision(model: Transformer) -> None:
    """Recompute what is not stored, and keep fp32 what stays fp32 in a narrower dtype."""
    speeds = Transformer.rotary_speeds(model.config)
    model.speeds_R = speeds.to(model.lm_head.weight.device)
    for module in model.modules():
        if isinstance(module, Router):
            module.e_score_correction_bias = module.e_score_correction_bias.float()
        elif isinstance(module, Indexer):
            module.weights_proj.to(torch.promote_types(module.wk.weight.dtype, torch.float32))


def _head_dtype(stored: StoredWeights) -> torch.dtype:
    if "lm_head.weight" not in stored.file_of:
        raise CorruptFileError(
            expected=f"`lm_head.weight` in `{stored.directory}`",
            found="weights without an output head",
            fix="Give the checkpoint of a language model of the GLM or DeepSeek families",
        )
    with safe_open(stored.file_of["lm_head.weight"], framework="pt") as handle:
        return handle.get_slice("lm_head.weight")[:1].dtype
