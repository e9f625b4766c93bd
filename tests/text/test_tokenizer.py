"""Training is deterministic, text never becomes a special token, nothing is lost."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fivefold.config import validate
from fivefold.errors import ConfigError, CorruptFileError, MismatchError, MissingFileError
from fivefold.text.bpe import train_tokenizer
from fivefold.text.config import TokenizerConfig
from fivefold.text.special import MARKUP_TOKENS, NAMED_TOKENS, SPECIAL_TOKENS
from fivefold.text.tokenizer import StreamDecoder, Tokenizer, load_tokenizer

REGULAR_IDS = 520 - 164
PLAIN_TEXTS = (
    "The keeper's lamp: 20231224 nights.\n\n  Then  nothing\t!\r\n",
    "波を数えたmixed中文English数123字",
    "naive cafe\u0301 ñandú \x00\x7f 👍🏽 नमस्ते สวัสดี",
    "",
)
any_text = st.text(alphabet=st.characters(codec="utf-8"), max_size=60)
text_with_specials = st.lists(any_text | st.sampled_from(SPECIAL_TOKENS), max_size=6).map("".join)


def train_in_process(hash_seed: str, threads: str) -> str:
    recipe = Path(__file__).with_name("conftest.py").read_text(encoding="utf-8")
    source = recipe.partition("@pytest.fixture")[0] + "\n".join(
        ["import sys", "sys.stdout.write(train_tokenizer(TRAIN_TEXTS * 3, CONFIG).to_str())"]
    )
    done = subprocess.run(
        [sys.executable, "-c", source],
        env={"PYTHONHASHSEED": hash_seed, "RAYON_NUM_THREADS": threads, "PYTHONUTF8": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    return done.stdout


def test_training_gives_the_same_bytes_in_two_processes(tokenizer_directory: Path):
    first = train_in_process(hash_seed="1", threads="1")
    second = train_in_process(hash_seed="2", threads="2")
    saved = (tokenizer_directory / "tokenizer.json").read_text(encoding="utf-8")
    assert first == second
    assert json.loads(first) == json.loads(saved)


def test_special_tokens_fill_the_end_of_the_vocabulary(tokenizer: Tokenizer):
    ids = [tokenizer.id_of(token) for token in SPECIAL_TOKENS]
    assert ids == list(range(REGULAR_IDS, 520))
    assert tokenizer.vocab_size == 520
    # Offsets that public code confirms for the released vocabulary (first special id 154,820).
    offsets = {
        token: tokenizer.id_of(token) - REGULAR_IDS
        for token in ("<|user|>", "<|observation|>", "<think>", "<tool_call>", "</arg_value>")
    }
    assert list(offsets.values()) == [7, 9, 21, 23, 30]
    assert len(NAMED_TOKENS) == 36


@given(text=text_with_specials)
def test_encode_of_text_with_special_tokens_spelled_out_emits_none(tokenizer: Tokenizer, text: str):
    ids = tokenizer.encode(text)
    assert all(token_id < REGULAR_IDS for token_id in ids)
    assert tokenizer.decode(ids) == text


def test_encode_of_every_byte_value_is_known(tokenizer: Tokenizer):
    text = "".join(map(chr, range(256))) + "\U0010ffff"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    single = {bytes(tokenizer.decode_bytes([token_id])) for token_id in range(REGULAR_IDS)}
    assert {bytes([value]) for value in range(256)} <= single


@given(texts=st.lists(text_with_specials, max_size=4))
def test_encode_batch_equals_encode_of_each(tokenizer: Tokenizer, texts: list[str]):
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@given(text=text_with_specials)
def test_token_bytes_sum_to_the_bytes_of_the_text(tokenizer: Tokenizer, text: str):
    lengths = tokenizer.token_bytes()
    assert lengths.dtype == np.int32
    assert lengths.shape == (520,)
    assert lengths[tokenizer.encode(text)].sum() == len(text.encode())
    assert not lengths[REGULAR_IDS:].any()
    assert lengths[:REGULAR_IDS].all()


@given(ids=st.lists(st.integers(0, 519), max_size=40), skip=st.booleans())
def test_stream_decoder_concatenates_to_decode(tokenizer: Tokenizer, ids: list[int], skip: bool):
    stream = StreamDecoder(tokenizer, skip_special=skip)
    pieces = [stream.push(token_id) for token_id in ids]
    assert "".join([*pieces, stream.finish()]) == tokenizer.decode(ids, skip_special=skip)


def test_stream_decoder_never_emits_half_a_character(tokenizer: Tokenizer):
    ids = tokenizer.encode("x👍y")
    stream = StreamDecoder(tokenizer)
    assert [stream.push(token_id) for token_id in ids] == ["x", "", "", "", "👍", "y"]
    assert stream.push(ids[1]) == ""
    assert stream.finish() == "\ufffd"
    assert stream.push(ids[0]) == "x"


def test_decode_skips_control_tokens_and_keeps_markup(tokenizer: Tokenizer):
    ids = [tokenizer.id_of(token) for token in ("<|assistant|>", "<think>", "</think>")]
    assert tokenizer.decode(ids) == "<|assistant|><think></think>"
    assert tokenizer.decode(ids, skip_special=True) == "<think></think>"
    assert tokenizer.decode([10_000]) == ""


def test_framing_puts_prefix_and_end_around_a_document(tokenizer: Tokenizer):
    ids = tokenizer.encode("waves")
    framed = tokenizer.frame_document(ids)
    assert tokenizer.decode(framed) == "[gMASK]<sop>waves<|endoftext|>"
    assert tokenizer.prompt_ids("waves") == framed[:-1]
    assert tokenizer.stop_ids == (REGULAR_IDS, REGULAR_IDS + 7, REGULAR_IDS + 9)


@pytest.mark.parametrize(("digits", "pieces"), [("triples", 2), ("individual", 5)])
def test_digits_are_split_by_the_configured_rule(digits: str, pieces: int):
    config = TokenizerConfig.model_validate({"vocab_size": 420, "digits": digits})
    backend = train_tokenizer(["12345"], config)
    split = backend.pre_tokenizer
    assert split is not None
    assert len(split.pre_tokenize_str("12345")) == pieces


def test_split_leaves_ideographs_whole_and_loses_no_character(tokenizer: Tokenizer):
    backend = train_tokenizer(["a"], TokenizerConfig(vocab_size=420))
    split = backend.pre_tokenizer
    assert split is not None
    text = "see 灯塔看守人 it's  1234\n\n  end"
    spans = [text[begin:end] for _, (begin, end) in split.pre_tokenize_str(text)]
    assert spans == [
        "see",
        " ",
        "灯塔看守人",
        " it",
        "'s",
        " ",
        " ",
        "123",
        "4",
        "\n\n",
        " ",
        " end",
    ]


def test_saved_directory_loads_to_the_same_tokenizer(
    tokenizer: Tokenizer, tokenizer_directory: Path
):
    loaded = load_tokenizer(tokenizer_directory)
    copied = pickle.loads(pickle.dumps(loaded))
    for text in PLAIN_TEXTS:
        assert loaded.encode(text) == copied.encode(text) == tokenizer.encode(text)
    assert loaded.content_hash == copied.content_hash == tokenizer.content_hash
    assert len(loaded.content_hash) == 16


def test_content_hash_differs_where_ids_or_split_differ(tokenizer: Tokenizer):
    texts = ["the waves 1234 the waves 1234"]
    triples = Tokenizer(train_tokenizer(texts, TokenizerConfig(vocab_size=424)))
    single = Tokenizer(train_tokenizer(texts, TokenizerConfig(vocab_size=424, digits="individual")))
    assert len({tokenizer.content_hash, triples.content_hash, single.content_hash}) == 3


@pytest.mark.numerics
def test_transformers_opens_the_directory_with_the_same_ids(
    tokenizer: Tokenizer, tokenizer_directory: Path, tmp_path: Path
):
    # A checkpoint's config.json beside the tokenizer must not change how it is opened.
    shutil.copytree(tokenizer_directory, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text('{"model_type": "glm_moe_dsa"}', encoding="utf-8")
    peer = AutoTokenizer.from_pretrained(tmp_path)
    for text in PLAIN_TEXTS:
        assert peer(text).input_ids == tokenizer.encode(text)
        assert peer.decode(tokenizer.encode(text)) == text
    assert peer.eos_token_id == peer.pad_token_id == tokenizer.pad_id
    assert peer.padding_side == "left"
    assert peer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(REGULAR_IDS, 520))
    markup = [tokenizer.id_of(token) for token in MARKUP_TOKENS]
    mixed = [tokenizer.pad_id, *markup]
    assert peer.decode(mixed, skip_special_tokens=True) == tokenizer.decode(
        mixed, skip_special=True
    )


def test_training_stops_at_the_byte_budget():
    consumed: list[int] = []

    def texts():
        for index in range(100):
            consumed.append(index)
            yield "é" * 10

    train_tokenizer(texts(), TokenizerConfig(vocab_size=420, max_train_bytes=45))
    assert consumed == [0, 1, 2]


def test_training_on_too_little_text_says_what_fits():
    texts = ["wave waves waved"]
    with pytest.raises(ConfigError, match="set `vocab_size` to 4") as caught:
        train_tokenizer(texts, TokenizerConfig(vocab_size=2048))
    fitting = int(caught.value.fix.rpartition(" ")[2])
    train_tokenizer(texts, TokenizerConfig(vocab_size=fitting))
    with pytest.raises(ConfigError, match=f"set `vocab_size` to {fitting}"):
        train_tokenizer(texts, TokenizerConfig(vocab_size=fitting + 1))


def test_vocabulary_smaller_than_bytes_and_specials_is_refused():
    with pytest.raises(ConfigError, match="at least 420"):
        validate(TokenizerConfig, {"vocab_size": 419}, where="tokenizer")


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {"type": "WordLevel"}}', "{}"])
def test_load_of_a_broken_file_names_it(tmp_path: Path, content: str):
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(CorruptFileError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_load_of_a_truncated_file_names_it(tokenizer_directory: Path, tmp_path: Path):
    text = (tokenizer_directory / "tokenizer.json").read_text(encoding="utf-8")
    document = json.loads(text)
    document["model"].pop("vocab")
    for content in (text[:-100], json.dumps(document)):
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
        with pytest.raises(CorruptFileError, match=r"tokenizer\.json"):
            load_tokenizer(tmp_path)


def test_load_without_a_file_says_where_it_looked(tmp_path: Path):
    with pytest.raises(MissingFileError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_load_of_another_family_is_refused(tmp_path: Path):
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(MismatchError, match="GLM family"):
        load_tokenizer(tmp_path)
