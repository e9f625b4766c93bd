"""Damaged and foreign checkpoint directories end in a named error, never in a wrong model."""

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import build

from fivefold.errors import CorruptFileError, MismatchError, MissingFileError, StorageError
from fivefold.models import convert
from fivefold.models.convert import read_checkpoint, released_tensors, write_checkpoint
from fivefold.models.generate import Sampling
from fivefold.models.preset import preset
from fivefold.models.talk import Talker
from fivefold.text.bpe import train_tokenizer
from fivefold.text.config import TokenizerConfig
from fivefold.text.tokenizer import Tokenizer

TINY = preset("nano", num_hidden_layers=2, n_routed_experts=4, num_experts_per_tok=2)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(build(TINY), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"config\.json"):
        read_checkpoint(tmp_path / "nowhere")


def test_missing_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(MissingFileError, match="safetensors"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_truncated_weights(checkpoint: Path, kept: int) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CorruptFileError, match="whole safetensors file"):
        read_checkpoint(checkpoint)


def test_absent_tensor(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    save_file(tensors, file)
    with pytest.raises(CorruptFileError, match=r"experts\.3\.up_proj"):
        read_checkpoint(checkpoint)


def test_wrong_shape(checkpoint: Path) -> None:
    path = checkpoint / "config.json"
    fields = json.loads(path.read_text())
    fields["intermediate_size"] = 192
    path.write_text(json.dumps(fields))
    with pytest.raises(MismatchError, match=r"mlp\.gate_proj"):
        read_checkpoint(checkpoint)


def test_config_that_is_not_json(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(CorruptFileError, match="JSON"):
        read_checkpoint(checkpoint)


def test_full_disk_keeps_the_checkpoint_before(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {n: t.clone() for n, t in released_tensors(read_checkpoint(checkpoint))}

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert, "save_file", fail)
    with pytest.raises(StorageError, match="No space left"):
        write_checkpoint(build(TINY, deviation=0.5), checkpoint)
    after = dict(released_tensors(read_checkpoint(checkpoint)))
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]


def test_shards_and_index_hold_the_same_weights(tmp_path: Path) -> None:
    model = build(TINY)
    write_checkpoint(model, tmp_path / "sharded", max_shard_bytes=300_000)
    files = sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors"))
    assert len(files) > 3
    for name, tensor in released_tensors(read_checkpoint(tmp_path / "sharded")):
        assert torch.equal(tensor, dict(released_tensors(model))[name])
    (tmp_path / "sharded" / files[1]).unlink()
    with pytest.raises(MissingFileError, match=files[1]):
        read_checkpoint(tmp_path / "sharded")


def test_bf16_export_keeps_fp32_where_precision_decides(tmp_path: Path) -> None:
    write_checkpoint(build(TINY), tmp_path / "bf16", dtype=torch.bfloat16)
    tensors = load_file(tmp_path / "bf16" / "model.safetensors")
    kinds = {name: tensor.dtype for name, tensor in tensors.items()}
    fp32 = {name for name, dtype in kinds.items() if dtype == torch.float32}
    assert fp32 == {
        name
        for name in kinds
        if name.endswith(("e_score_correction_bias", "indexer.weights_proj.weight"))
    }
    model = read_checkpoint(tmp_path / "bf16")
    assert model.lm_head.weight.dtype == torch.bfloat16
    loaded = model.state_dict()
    assert loaded["layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    assert loaded["layers.1.self_attn.indexer.weights_proj.weight"].dtype == torch.float32


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"weight_map": 4}', "{"])
def test_malformed_index(checkpoint: Path, content: str) -> None:
    (checkpoint / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CorruptFileError, match="weight map"):
        read_checkpoint(checkpoint)


def test_foreign_weights_are_refused_and_known_copies_ignored(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    embedding = tensors["model.embed_tokens.weight"]
    tensors["model.layers.2.embed_tokens.weight"] = embedding.clone()
    tensors["model.layers.2.shared_head.head.weight"] = embedding.clone()
    save_file(tensors, file)
    read_checkpoint(checkpoint)
    tensors["model.layers.0.self_attn.q_b_proj.bias"] = torch.zeros(128)
    save_file(tensors, file)
    with pytest.raises(MismatchError, match=r"q_b_proj\.bias"):
        read_checkpoint(checkpoint)


def test_eight_bit_weights_are_refused(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.self_attn.o_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, file)
    with pytest.raises(MismatchError, match=r"o_proj\.weight.*float8"):
        read_checkpoint(checkpoint)


def test_tokenizer_larger_than_the_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    text = " ".join(f"word{number}" for number in range(3000))
    Tokenizer(train_tokenizer([text], TokenizerConfig(vocab_size=600))).save_pretrained(tmp_path)
    write_checkpoint(
        build(TINY.model_copy(update={"vocab_size": 500})), tmp_path / "checkpoint", dtype=None
    )
    for path in tmp_path.glob("*.json"):
        path.rename(tmp_path / "checkpoint" / path.name)
    with pytest.raises(MismatchError, match="600 ids"):
        Talker(tmp_path / "checkpoint", "cpu", Sampling(), seed=0)
