"""The engine on the `mini` shape in fp32: against `transformers.generate`, or against itself.

Each `--case` is one claim; the summary line's name says which:

    batch1, batch1_long, batch8   greedy decode after 64 (2,048, 64) tokens: peer is transformers
    staggered                     64 requests of different lengths that arrive in turn: the peer
                                  answers them one by one
    speculation                   drafts on against off; accept lengths beside it
    multi_turn                    32 conversations of 4 turns: prefix cache on against off, with the
                                  share of re-sent prefix tokens that the cache had
    http                          batch 8 over HTTP against the same in process; 1 is no overhead

`speculation` measures an untrained MTP layer unless `--checkpoint` names a trained model.
"""

import argparse
import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import torch
from harness import add_options, compare
from peer import build_pair

from fivefold.models.convert import read_checkpoint
from fivefold.models.initialise import initialise
from fivefold.models.preset import preset
from fivefold.models.transformer import Transformer
from fivefold.serve.apart import apart
from fivefold.serve.config import EngineConfig
from fivefold.serve.engine import Engine
from fivefold.serve.launch import Server, listen
from fivefold.serve.request import Request, SamplingParams
from fivefold.serve.served import Served
from fivefold.serve.worker import Worker
from fivefold.text.bpe import train_tokenizer
from fivefold.text.config import TokenizerConfig
from fivefold.text.tokenizer import Tokenizer

CASES = (
    "batch1",
    "batch1_long",
    "batch8",
    "staggered",
    "speculation",
    "multi_turn",
    "http",
)


def main() -> None:
    """Measure one case."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--case", choices=CASES, default="batch1")
    parser.add_argument("--new", type=int, default=48, help="new tokens of a request")
    parser.add_argument("--checkpoint", type=Path, help="a trained model instead of random weights")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    match options.case:
        case "batch1":
            against_peer(options, batch=1, prompt_tokens=64)
        case "batch1_long":
            against_peer(options, batch=1, prompt_tokens=2048)
        case "batch8":
            against_peer(options, batch=8, prompt_tokens=64)
        case "staggered":
            staggered(options)
        case "speculation":
            speculation(options)
        case "multi_turn":
            multi_turn(options)
        case "http":
            over_http(options)


def prompts_of(config: Any, rows: int, tokens: int, seed: int = 1) -> list[list[int]]:
    """Return random prompts."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocab_size, (rows, tokens), generator=generator).tolist()


def load_model(options: argparse.Namespace) -> Transformer:
    """Return the checkpoint, or a `mini` model of random weights."""
    if options.checkpoint is not None:
        return read_checkpoint(options.checkpoint)
    config = preset("mini")
    model = Transformer(config)
    initialise(model, config, torch.Generator().manual_seed(0))
    return model.eval()


def greedy(new: int) -> SamplingParams:
    """Return settings that give exactly `new` tokens."""
    return SamplingParams(max_new_tokens=new, temperature=0, ignore_eos=True)


def run_all(engine: Engine, prompts: list[list[int]], new: int) -> list[Request]:
    """Serve prompts that are all there at once, to their end."""
    requests = [engine.add(prompt, greedy(new)) for prompt in prompts]
    engine.run_until_idle()
    # Each call begins with a cold cache, as the peer does.
    engine.flush_cache()
    return requests


def against_peer(options: argparse.Namespace, *, batch: int, prompt_tokens: int) -> None:
    """Compare with `transformers.generate`, prefill included."""
    config = preset("mini", num_nextn_predict_layers=0)
    ours, peers = build_pair(config, torch.float32, (torch.float32,))
    peer = peers[torch.float32].eval()
    prompts = prompts_of(config, batch, prompt_tokens)
    rows, new = torch.tensor(prompts), options.new
    engine = Engine(ours)
    compare(
        f"serving_batch{batch}_context{prompt_tokens}",
        lambda: run_all(engine, prompts, new),
        lambda: peer.generate(
            rows, attention_mask=torch.ones_like(rows), max_new_tokens=new, min_new_tokens=new,
            do_sample=False, pad_token_id=0,
        ),
        work=batch * new,
        unit="tokens/s",
        options=options,
        detail={},
    )  # fmt: skip


def staggered(options: argparse.Namespace) -> None:
    """Let 64 requests arrive two a step; the peer answers one after the other."""
    count = 16 if options.quick else 64
    config = preset("mini", num_nextn_predict_layers=0)
    ours, peers = build_pair(config, torch.float32, (torch.float32,))
    peer = peers[torch.float32].eval()
    prompts = [prompts_of(config, 1, 32 + 5 * (i % 13), seed=i)[0] for i in range(count)]
    engine = Engine(ours)

    def our_turn() -> None:
        left = list(prompts)
        while left or engine.step():
            for prompt in left[:2]:
                engine.add(prompt, greedy(options.new))
            del left[:2]
            engine.step()
        engine.flush_cache()

    def peer_turn() -> None:
        for prompt in prompts:
            rows = torch.tensor([prompt])
            peer.generate(
                rows, attention_mask=torch.ones_like(rows), max_new_tokens=options.new,
                min_new_tokens=options.new, do_sample=False, pad_token_id=0,
            )  # fmt: skip

    compare(
        "serving_staggered",
        our_turn,
        peer_turn,
        work=count * options.new,
        unit="tokens/s",
        options=options,
        detail={"requests": count},
    )


def speculation(options: argparse.Namespace) -> None:
    """Draft up to three tokens ahead, against no drafts; batch 1."""
    model = load_model(options)
    prompts = prompts_of(model.config, 1, 64)
    drafting = Engine(model, EngineConfig(draft_tokens=3))
    plain = Engine(model)
    detail: dict[str, Any] = {}

    def drafted() -> None:
        run_all(drafting, prompts, options.new)
        lengths = drafting.statistics.accept_lengths
        detail["accept_lengths"] = {str(length): lengths[length] for length in sorted(lengths)}
        detail["mean_accept_length"] = round(drafting.statistics.mean_accept_length, 3)

    # `compare` reads the dict when it writes the summary: after the last call.
    compare(
        "serving_speculation",
        drafted,
        lambda: run_all(plain, prompts, options.new),
        work=options.new,
        unit="tokens/s",
        options=options,
        detail=detail,
    )


def multi_turn(options: argparse.Namespace) -> None:
    """Replay conversations whose every turn sends all that came before."""
    sessions, turns, added = (8 if options.quick else 32), 4, 128
    model = load_model(options)
    words = prompts_of(model.config, sessions, turns * added)
    sharing = Engine(model)
    alone = Engine(model, EngineConfig(shares_prefixes=False))
    shares: list[float] = []

    def replay(engine: Engine) -> None:
        held: list[list[int]] = [[] for _ in range(sessions)]
        resent = cached = 0
        for turn in range(turns):
            fresh = [row[turn * added : (turn + 1) * added] for row in words]
            prompts = [[*old, *new] for old, new in zip(held, fresh, strict=True)]
            requests = [engine.add(prompt, greedy(8)) for prompt in prompts]
            engine.run_until_idle()
            resent += sum(map(len, held))
            cached += sum(request.cached_tokens for request in requests)
            held = [request.tokens for request in requests]
        engine.flush_cache()
        if engine is sharing:
            shares.append(cached / resent)

    replay(sharing)
    compare(
        "serving_multi_turn",
        lambda: replay(sharing),
        lambda: replay(alone),
        work=sessions * turns * (added + 8),
        unit="tokens/s",
        options=options,
        detail={"sessions": sessions, "cached_share_of_resent": round(shares[0], 4)},
    )


def over_http(options: argparse.Namespace) -> None:
    """Answer 8 requests over HTTP, against the same engine without the wire."""
    # As `open_served` does it: nothing but the engine's thread may keep an OpenMP team.
    engine = apart(lambda: Engine(load_model(options)))
    prompts = prompts_of(engine.model.config, 8, 64)
    new = options.new
    tokenizer = Tokenizer(train_tokenizer(["x"], TokenizerConfig(vocab_size=420)))
    served = Served(Worker(engine), tokenizer, "mini", "", engine)
    with listen("127.0.0.1", 0) as listener:
        asyncio.run(_http_pairs(options, served, listener, prompts, new))


async def _http_pairs(
    options: argparse.Namespace,
    served: Served,
    listener: socket.socket,
    prompts: list[list[int]],
    new: int,
) -> None:
    server = Server(served)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    loop = asyncio.get_running_loop()
    sampling = {"max_new_tokens": new, "temperature": 0, "ignore_eos": True}

    # One client for all calls: making one reads the certificates of the world, some 30 ms.
    client = httpx.AsyncClient(base_url=url, timeout=600)

    async def ask(prompt: list[int]) -> None:
        body = {"input_ids": prompt, "sampling_params": sampling, "return_logprob": True}
        (await client.post("/generate", json=body)).raise_for_status()

    async def by_http() -> None:
        await asyncio.gather(*(ask(prompt) for prompt in prompts))
        await served.call(lambda engine: engine.flush_cache())

    async def in_process() -> None:
        params = greedy(new)
        await asyncio.gather(*(served.worker.generate(prompt, params) for prompt in prompts))
        await served.call(lambda engine: engine.flush_cache())

    def blocking(work: Callable[[], Any]) -> Callable[[], None]:
        return lambda: asyncio.run_coroutine_threadsafe(work(), loop).result()

    try:
        await asyncio.to_thread(
            compare,
            "serving_http_batch8",
            blocking(by_http),
            blocking(in_process),
            work=8 * new,
            unit="tokens/s",
            options=options,
            detail={},
        )
    finally:
        await client.aclose()
        server.should_exit = True
        await serving


if __name__ == "__main__":
    main()
