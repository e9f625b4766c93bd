"""Two stages of data behind the corpus of `corpus_stage`: `tokenizer` and `tokens`.

    tokenizer  tokenizer.json and its companions, for transformers as for us
    tokens     tokens.json; per split and source NAME.bin/.idx/.json and NAME.CONTEXT.npz, in
               training a source for each tier (SOURCE@TIER); where asked for, the sources `long`
               (train/NAME.long.CONTEXT.npz) and `planted`

Each writes page blocks for the report. All of it is deterministic and independent of the run's
seed: two runs over the same archives train on the same rows.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from fivefold.data.config import TokenizerTrainingConfig, TokensConfig
from fivefold.stage import Stage, StageContext

logger = logging.getLogger(__name__)


class TokenizerStage(Stage):
    """Trains the tokenizer on a sample of the training documents; needs `corpus`."""

    what = "trains the tokenizer"
    is_seeded = False
    config: TokenizerTrainingConfig

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Write the tokenizer's directory and the page."""
        from fivefold.data.page import tokenizer_page
        from fivefold.data.tokenizer_sample import sample_texts
        from fivefold.text.bpe import train_tokenizer
        from fivefold.text.tokenizer import Tokenizer

        texts = sample_texts(
            inputs["corpus"] / "train.jsonl.zst",
            self.config.tokenizer.max_train_bytes,
            self.config.source_exponent,
        )
        tokenizer = Tokenizer(train_tokenizer(texts, self.config.tokenizer))
        tokenizer.save_pretrained(out)
        bytes_per_token = tokenizer_page(out / "page", inputs["corpus"], tokenizer)
        logger.info(
            "%s ids, %.2f bytes a token on held-out text",
            f"{tokenizer.vocab_size:,}",
            bytes_per_token,
        )
        context.metrics.write(0, {"data/heldout_bytes_per_token": bytes_per_token})


class TokensStage(Stage):
    """Tokenises and packs both splits; needs `corpus` and `tokenizer`."""

    what = "tokenises and packs"
    is_seeded = False
    config: TokensConfig

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Write token files, packs, `tokens.json`, the page and the data's own metrics."""
        from fivefold.data.corpus_page import tokens_page
        from fivefold.data.planted_page import planted_page
        from fivefold.data.tokenise import gzip_bits_per_byte, tokenise_corpus
        from fivefold.text.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(inputs["tokenizer"])
        summary = tokenise_corpus(inputs["corpus"], out, tokenizer, self.config, context.track)
        gzip_bits, heldout_bytes = gzip_bits_per_byte(inputs["corpus"] / "heldout.jsonl.zst")
        tokens_page(out / "page", summary, gzip_bits)
        if summary.planted:
            planted_page(out / "page", summary.planted)
        context.metrics.write(
            0,
            {
                "data/train_tokens": summary.tokens("train"),
                "data/train_documents": summary.documents("train"),
                "data/heldout_tokens": summary.tokens("heldout"),
                "data/heldout_bytes": heldout_bytes,
                "data/heldout_gzip_bits_per_byte": gzip_bits,
                **{
                    f"data/planted_{split}_tokens": planted.manifest.tokens
                    for split, planted in summary.planted.items()
                },
            },
        )
        logger.info(
            "%s training tokens, %s held-out tokens (gzip -9: %.3f bits a byte)",
            f"{summary.tokens('train'):,}",
            f"{summary.tokens('heldout'):,}",
            gzip_bits,
        )
        for split, planted in summary.planted.items():
            logger.info(
                "%s documents with planted facts (%s): %s tokens",
                f"{planted.manifest.documents:,}",
                split,
                f"{planted.manifest.tokens:,}",
            )
