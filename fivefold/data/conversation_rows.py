"""Conversations to packed rows: rendered once, written as token files, opened like any source.

    DIRECTORY/train|heldout/SOURCE.bin/.idx/.json   ids, as `token_file` has them
                           /SOURCE.weight.npy       factor of each token's loss, 0: no label
                           /SOURCE.CONTEXT.npz      the pack
             /rows.json                             what they were made of, and the accounts

Whole samples are packed best-fit; one that does not fit the context is dropped, counted, and never
cut, for an answer without its question teaches nonsense and a question without its answer nothing.
The files of the loader are reused with one addition, the weights. Surprise: all samples are held in
memory before they are written (5 bytes a token), since sources may be mixed within a file.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fivefold.artifact import atomic_write, digest_directory, read_json, write_json
from fivefold.config import hash_config
from fivefold.data.conversation_config import ConversationsConfig
from fivefold.data.conversation_file import (
    Split,
    TrainingConversation,
    choose_split,
    conversation_files,
    read_conversations,
)
from fivefold.data.conversation_ledger import (
    NOTHING_LEARNED,
    TOO_LONG,
    ConversationLedger,
    conversation_page,
)
from fivefold.data.conversation_sample import TrainingSample, conversation_to_samples
from fivefold.data.packed_source import PackedSource
from fivefold.data.packing import load_pack, pack_documents, save_pack
from fivefold.data.token_file import open_token_file, write_token_file
from fivefold.errors import ConfigError, CorruptFileError
from fivefold.stage import Track
from fivefold.text.chat_template import CHAT_TEMPLATE
from fivefold.text.tokenizer import Tokenizer

_AGAIN = "Delete the directory; the same command makes it again"


@dataclass
class _Samples:
    """The kept samples of one source in one split."""

    ids: list[np.ndarray] = field(default_factory=list)
    is_learned: list[np.ndarray] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


def template_hash(template: str = CHAT_TEMPLATE) -> str:
    """Return 16 hex digits of a chat template."""
    return hashlib.sha256(template.strip().encode()).hexdigest()[:16]


def write_conversation_rows(
    conversations: Path,
    directory: Path,
    page: Path,
    tokenizer: Tokenizer,
    config: ConversationsConfig,
    track: Track,
) -> None:
    """Render and pack `conversations/*.jsonl` into `directory`, unless that was done before.

    Raises:
        MissingFileError, CorruptFileError, ConfigError: as in `read_conversations`; or nothing is
            left to train on, or nothing is held out.
    """
    files = conversation_files(conversations)
    identity = {
        "conversations": digest_directory(conversations),
        "config": hash_config(config),
        "tokenizer": tokenizer.content_hash,
        "template": template_hash(),
    }
    if (read_json(directory / "rows.json") or {}).get("identity") == identity:
        return
    ledger = ConversationLedger()
    samples: dict[tuple[str, str], _Samples] = defaultdict(_Samples)
    with track("rendering conversations", len(files), "files") as task:
        for path in files:
            for conversation in read_conversations(path):
                _take(conversation, samples, ledger, tokenizer, config)
            task.advance(file=path.name)
    ledger.check()
    _check(conversations, samples, ledger, config)
    for (split, source), kept in sorted(samples.items()):
        _write_source(directory / split / source, kept, source, tokenizer, config.context_tokens)
    names = {split: sorted(s for t, s in samples if t == split) for split in ("train", "heldout")}
    conversation_page(page, ledger)
    content = {"identity": identity, "sources": names, "accounts": ledger.to_json()}
    write_json(directory / "rows.json", content)


def _take(
    conversation: TrainingConversation,
    samples: Mapping[tuple[str, str], _Samples],
    ledger: ConversationLedger,
    tokenizer: Tokenizer,
    config: ConversationsConfig,
) -> None:
    source = conversation.source
    split = choose_split(conversation, config.heldout_share, config.heldout_seed)
    thinking = config.thinking_of.get(source, config.thinking)
    account = ledger.accounts[split, source]
    account.conversations += 1
    for sample in conversation_to_samples(conversation, tokenizer, thinking):
        account.samples += 1
        reason = _reason_to_drop(sample, config.context_tokens)
        if reason is not None:
            ledger.drop(account, reason, conversation.place)
            continue
        ledger.keep(account, sample)
        ledger.show(source, sample, tokenizer)
        kept = samples[split, source]
        kept.ids.append(sample.ids)
        kept.is_learned.append(sample.is_learned)
        kept.weights.append(conversation.weight)


def _reason_to_drop(sample: TrainingSample, context_tokens: int) -> str | None:
    if len(sample.ids) > context_tokens + 1:
        return TOO_LONG
    return None if sample.learned_tokens else NOTHING_LEARNED


def _check(
    conversations: Path,
    samples: Mapping[tuple[str, str], _Samples],
    ledger: ConversationLedger,
    config: ConversationsConfig,
) -> None:
    unknown = sorted(set(config.thinking_of) - {source for _, source in ledger.accounts})
    if unknown:
        raise ConfigError(
            expected="`thinking_of` to name sources of the conversations",
            found=", ".join(unknown),
            fix=f"Choose among {', '.join(sorted({source for _, source in ledger.accounts}))}",
        )
    for split, fix in (
        ("train", "Give more conversations, or a longer `context_tokens`"),
        ("heldout", 'Mark conversations with `"split": "heldout"`, or raise `heldout_share`'),
    ):
        if any(of == split for of, _ in samples):
            continue
        accounts = [account for (of, _), account in ledger.accounts.items() if of == split]
        dropped = sum((account.dropped for account in accounts), Counter())
        raise ConfigError(
            expected=f"samples to {'train on' if split == 'train' else 'validate on'} in "
            f"`{conversations}`",
            found=f"all of them dropped ({dict(dropped)})" if dropped else "none",
            fix=fix,
        )


def _write_source(
    path: Path, samples: _Samples, source: str, tokenizer: Tokenizer, context_tokens: int
) -> None:
    manifest = write_token_file(
        path,
        samples.ids,
        vocab_size=tokenizer.vocab_size,
        tokenizer_hash=tokenizer.content_hash,
        source=source,
    )
    lengths = np.array([len(ids) for ids in samples.ids])
    pack = pack_documents(lengths, context_tokens, "best_fit")
    save_pack(path.with_name(f"{path.name}.{context_tokens}.npz"), pack, manifest.sha256)
    factors = np.repeat(np.array(samples.weights, dtype=np.float32), lengths)
    with atomic_write(_weight_path(path)) as partial, partial.open("wb") as file:
        np.save(file, factors * np.concatenate(samples.is_learned))


def open_conversation_rows(
    directory: Path, context_tokens: int, split: Split
) -> list[PackedSource]:
    """Open what `write_conversation_rows` wrote for one split.

    Raises:
        MissingFileError, CorruptFileError, MismatchError: files are gone, damaged, or do not belong
            together.
    """
    summary = read_json(directory / "rows.json")
    assert summary is not None, f"no conversation rows in {directory}"
    sources = []
    for name in summary["sources"][split]:
        path = directory / split / name
        tokens = open_token_file(path, verify=True)
        pack = load_pack(path.with_name(f"{name}.{context_tokens}.npz"), tokens.manifest.sha256)
        weight = _read_weight(_weight_path(path), tokens.manifest.tokens)
        sources.append(PackedSource(name, tokens, pack, weight))
    return sources


def _read_weight(path: Path, tokens: int) -> np.ndarray:
    try:
        weight = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise CorruptFileError(
            expected=f"the weights of tokens in `{path}`", found=str(error)[:200], fix=_AGAIN
        ) from error
    if weight.shape != (tokens,) or weight.dtype != np.float32:
        raise CorruptFileError(
            expected=f"{tokens:,} weights in `{path}`",
            found=f"{weight.dtype} of shape {weight.shape}",
            fix=_AGAIN,
        )
    return weight


def _weight_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.weight.npy")
