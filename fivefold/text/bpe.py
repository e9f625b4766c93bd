"""Training of a byte-level BPE vocabulary with GLM's special tokens at its end.

The split rule is GLM-4's in spirit (words with the space before them, digits in threes, signs,
white space), with two differences: combining marks belong to their word, and a run of Chinese or
Japanese is a piece of its own even where it touches Latin letters.
"""

from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from fivefold.errors import ConfigError
from fivefold.text.config import BYTE_VALUES, TokenizerConfig
from fivefold.text.special import MARKUP_TOKENS, SPECIAL_TOKENS


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> tokenizers.Tokenizer:
    """Train a byte-level BPE on the texts, in their order, up to `max_train_bytes`.

    The result depends on the texts and the config only, not on threads or hash seeds.

    Raises:
        ConfigError: the texts hold too few distinct pieces to fill the vocabulary.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(split_pattern(config)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.regular_ids,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_take_bytes(texts, config.max_train_bytes), trainer)
    learned = backend.get_vocab_size()
    if learned != config.regular_ids:
        raise ConfigError(
            expected=f"text with at least {config.regular_ids - BYTE_VALUES} frequent pieces, "
            f"for a vocabulary of {config.vocab_size}",
            found=f"{learned - BYTE_VALUES} pieces",
            fix=f"Train on more text, or set `vocab_size` to {learned + len(SPECIAL_TOKENS)}",
        )
    backend.add_tokens(
        [
            tokenizers.AddedToken(token, special=token not in MARKUP_TOKENS, normalized=False)
            for token in SPECIAL_TOKENS
        ]
    )
    return backend


def split_pattern(config: TokenizerConfig) -> str:
    """Return the regular expression whose matches no merge crosses.

    Order matters: the first alternative that matches at a position wins.
    """
    ideographs = r"\p{Han}\p{Hiragana}\p{Katakana}"
    letter = rf"[[\p{{L}}\p{{M}}]&&[^{ideographs}]]"
    alternatives = (
        r"(?i:'(?:s|d|m|t|ll|re|ve)(?!\p{L}))",  # English endings: it's, we'll
        rf"[{ideographs}]+",  # a run of Chinese or Japanese, left whole
        rf"[^\r\n\p{{L}}\p{{N}}]?{letter}+",  # a word with the space or sign before it
        r"\p{N}{1,3}" if config.digits == "triples" else r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # signs, with the line break that ends them
        r"\s*[\r\n]+",  # blank lines
        r"\s+(?!\S)",  # indentation, less the space that belongs to the next word
        r"\s+",
    )
    return "|".join(alternatives)


def _take_bytes(texts: Iterable[str], budget: int) -> Iterator[str]:
    for text in texts:
        raw = text.encode()
        yield text if len(raw) <= budget else raw[:budget].decode("utf-8", errors="ignore")
        budget -= len(raw)
        if budget <= 0:
            return
