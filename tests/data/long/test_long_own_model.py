"""Our own model as a `TokenModel`: the whole distribution, row by row, against a plain forward."""

from pathlib import Path

import numpy as np
import pytest
import torch
from long_builder import make_document, make_library, prose

from fivefold.data.long.config import EntropyLongConfig, LongConfig
from fivefold.data.long.entropylong import EntropyLong
from fivefold.data.long.measure import Ruler
from fivefold.models.config import ModelConfig
from fivefold.models.convert import write_checkpoint
from fivefold.models.initialise import initialise
from fivefold.models.preset import preset
from fivefold.models.transformer import Transformer
from fivefold.serve.token_model import CheckpointModel, open_checkpoint
from fivefold.text.tokenizer import Tokenizer


def tiny(tokenizer: Tokenizer) -> ModelConfig:
    return preset(
        "nano",
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=256,
        index_topk=256,
        num_hidden_layers=2,
        indexer_types=("full", "full"),
        pad_token_id=tokenizer.pad_id,
        eos_token_id=tokenizer.stop_ids,
    )


@pytest.fixture
def model(tokenizer: Tokenizer) -> CheckpointModel:
    torch.set_num_threads(1)
    config = tiny(tokenizer).model_copy(update={"initializer_range": 0.1})
    model = Transformer(config)
    initialise(model, config, torch.Generator().manual_seed(0))
    return CheckpointModel(model.eval(), tokenizer)


def test_scores_are_those_of_one_row_alone(model: CheckpointModel, tokenizer: Tokenizer):
    rows = [tokenizer.encode(prose(0, 1, 2))[:n] for n in (40, 7, 90)]
    for row, scores in zip(rows, model.score_tokens(rows), strict=True):
        with torch.inference_mode():
            hidden = model._model(torch.tensor([row])).hidden_BTD
            p = model._model.logits(hidden)[0].double().softmax(-1).numpy()
        entropy = -(p * np.log(p)).sum(-1)[:-1]
        logprob = np.log(p[np.arange(len(row) - 1), row[1:]])
        assert np.isnan([scores.entropy[0], scores.logprob[0]]).all()
        assert np.isfinite(entropy).all()
        np.testing.assert_allclose(scores.entropy[1:], entropy, atol=2e-5)
        np.testing.assert_allclose(scores.logprob[1:], logprob, atol=2e-5)


def test_a_saved_checkpoint_opens(tmp_path: Path, model: CheckpointModel, tokenizer: Tokenizer):
    write_checkpoint(model._model, tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    opened = open_checkpoint(str(tmp_path / "model"))
    row = tokenizer.encode(prose(0, 1, 2))[:50]
    again, before = opened.score_tokens([row])[0], model.score_tokens([row])[0]
    np.testing.assert_allclose(again.entropy, before.entropy, atol=1e-6)


def test_gains_are_those_of_two_plain_forwards(
    tmp_path: Path, model: CheckpointModel, tokenizer: Tokenizer
):
    ruler = Ruler(tokenizer, 4.0)
    documents = [make_document(prose(0, n, 5), str(n)) for n in range(4)]
    library = make_library(tmp_path, documents, ruler, 60)
    own = EntropyLongConfig(
        root_tokens=120,
        min_root_tokens=64,
        chunk_tokens=100,
        skipped_tokens=4,
        deviations=0.2,
        min_gain=1e-4,
    )
    config = LongConfig(context_tokens=256, entropylong=own)
    method = EntropyLong(library, config, ruler, model)
    ids = tokenizer.encode(library.documents[0].text)[:120]
    positions, found = method.find_dependencies(ids, 0)
    assert found
    assert {one.position for one in found} <= set(positions)
    for one in found:
        context = tokenizer.encode(library.text(one.chunk))
        for front, entropy in (([], one.before), (context, one.after)):
            row = [*tokenizer.prefix_ids, *front, *ids[: one.position]]
            with torch.inference_mode():
                hidden = model._model(torch.tensor([row])).hidden_BTD
                p = model._model.logits(hidden[0, -1]).double().softmax(-1)
            assert entropy == pytest.approx(float(torch.special.entr(p).sum()), abs=1e-4)
        assert one.gain == pytest.approx((one.before - one.after) / one.before)
        assert one.gain > 1e-4
