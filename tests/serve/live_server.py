"""A live server on a free port, and models that say what a test wants them to say."""

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from tiny_engine import assert_idle, tiny_config
from tiny_model import build

from fivefold.models.transformer import Transformer
from fivefold.serve.config import EngineConfig
from fivefold.serve.engine import Engine
from fivefold.serve.launch import Server, listen
from fivefold.serve.served import Served
from fivefold.serve.worker import Worker
from fivefold.text.bpe import train_tokenizer
from fivefold.text.config import TokenizerConfig
from fivefold.text.tokenizer import Tokenizer

SIZES = {"block_tokens": 4, "pool_tokens": 4096, "step_tokens": 128, "most_running": 16}


@cache
def byte_tokenizer() -> Tokenizer:
    """Every byte is a token: text of n ASCII characters is n ids."""
    return Tokenizer(train_tokenizer(["x"], TokenizerConfig(vocab_size=420)))


@cache
def random_model() -> Transformer:
    tokenizer = byte_tokenizer()
    return build(tiny_config(vocab_size=420, eos_token_id=tokenizer.stop_ids))


def chain_model(*chains: Sequence[str]) -> Transformer:
    """Return a model in which each token of a chain is followed by the next one.

    All layers pass the embedding through; the head knows the successor of each token. A string of
    one character is a byte, of several a special token. A token has one successor in all chains.
    """
    tokenizer = byte_tokenizer()
    model = build(tiny_config(vocab_size=420, eos_token_id=tokenizer.stop_ids))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "experts.down")):
                parameter.zero_()
        vectors = torch.randn(420, 64, generator=generator)
        model.embed_tokens.weight.copy_(vectors)
        model.lm_head.weight.zero_()
        for chain in chains:
            ids = [id_of(word) for word in chain]
            for token, following in itertools.pairwise(ids):
                model.lm_head.weight[following] += vectors[token]
    return model


def id_of(word: str) -> int:
    tokenizer = byte_tokenizer()
    return tokenizer.encode(word)[0] if len(word.encode()) == 1 else tokenizer.id_of(word)


def make_served(model: Transformer, **fields: Any) -> Served:
    engine = Engine(model, EngineConfig(**{**SIZES, **fields}))
    return Served(Worker(engine), byte_tokenizer(), "tiny", "nowhere", engine)


class Live:
    """A running server."""

    def __init__(self, served: Served, port: int) -> None:
        self.served = served
        self.url = f"http://127.0.0.1:{port}"

    def load(self) -> dict[str, int]:
        return asyncio.run(self.served.worker.call(lambda engine: engine.load()))

    def wait_until_idle(self, seconds: float = 10) -> None:
        """Nothing runs, nothing leaks; waits for requests of clients that have just gone."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            load = self.load()
            if not load["running_requests"] and not load["waiting_requests"]:
                break
            time.sleep(0.01)
        asyncio.run(self.served.worker.call(assert_idle))


@contextlib.contextmanager
def live_server(model: Transformer, **fields: Any) -> Iterator[Live]:
    """Serve on a free port; at the end, every block is free."""
    served = make_served(model, **fields)
    with listen("127.0.0.1", 0) as listener:
        server = Server(served, grace_seconds=5)
        thread = threading.Thread(
            target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True
        )
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield Live(served, listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(20)
        assert not thread.is_alive()
        assert_idle(served.engine)
