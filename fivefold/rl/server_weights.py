"""A server's weights over SGLang's routes: pushing the run's, and counting their versions.

    push       POST /update_weights_from_tensor or /update_weights_from_disk, then
    version    GET /get_weight_version: is it what was pushed?

A server counts its weights for itself, and outlives runs. The first push of a run is therefore a
version of the server's own count, the run's versions are told from there on, and a server that
nobody has pushed to holds no version of this run at all: its weights may be anything.
"""

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx
import safetensors.torch

from fivefold.errors import MismatchError
from fivefold.models.convert import released_tensors, write_checkpoint
from fivefold.models.transformer import Transformer
from fivefold.rl.retry import Retry
from fivefold.rl.rollout_config import RolloutConfig
from fivefold.rl.sample import NOT_SAMPLED
from fivefold.text.completer import EndpointError
from fivefold.text.endpoint import Endpoint

_VERSION_PATH = "/get_weight_version"


class ServerWeights:
    """The weights that a server has, seen from a run."""

    def __init__(
        self, config: RolloutConfig, model: Transformer, directory: Path, retry: Retry
    ) -> None:
        """Push the weights of `model`; by disk they go through `directory`."""
        assert config.url, "a server has a URL"
        timeout = config.timeout_seconds
        self._config, self._model, self._directory, self._retry = config, model, directory, retry
        self._endpoint = Endpoint(config.url, timeout_seconds=timeout)
        self._reader = httpx.AsyncClient(
            base_url=config.url.rstrip("/"), timeout=httpx.Timeout(timeout), trust_env=False
        )
        self.offset: int | None = None
        """Server's version less the run's; None: nothing was pushed."""

    async def close(self) -> None:
        """Close all connections."""
        await self._endpoint.close()
        await self._reader.aclose()

    async def push(self, version: int) -> None:
        """Give the server the model's present weights; they are this version from here on.

        Raises:
            RefusedError, OverloadedError, EndpointError: the server does not take them, however
                often they are sent (`config.retries`).
            MismatchError: it took them and serves another version than was pushed.
        """
        served = await self._retry(self._served_version)
        target = max(served + 1, 1) if self.offset is None else version + self.offset
        await self._push(target)
        found = await self._retry(self._served_version)
        if found != target:
            raise MismatchError(
                expected=f"weight version {target} at `{self._config.url}` after it was pushed",
                found=f"version {found}",
                fix="Let one run alone push to a server",
            )
        self.offset = target - version

    async def version(self) -> int:
        """Return the version that is served; `NOT_SAMPLED` before the first push."""
        if self.offset is None:
            return NOT_SAMPLED
        return await self._retry(self._served_version) - self.offset

    async def _push(self, target: int) -> None:
        if self._config.push == "tensor":
            path = "/update_weights_from_tensor"
            raw = await asyncio.to_thread(_to_safetensors, self._model)
            weights = {"serialized_named_tensors": [base64.b64encode(raw).decode()]}
        else:
            path = "/update_weights_from_disk"
            place = (self._directory / "pushed").absolute()
            write_checkpoint(self._model, place)
            weights = {"model_path": str(place)}
        body = {**weights, "weight_version": str(target)}
        tries = 0

        async def send() -> None:
            nonlocal tries
            tries += 1
            # The server may have taken them, and its answer been lost: it refuses a version twice.
            if tries > 1 and await self._served_version() == target:
                return
            reply = await self._endpoint.post(path, body)
            is_taken = isinstance(reply, dict) and reply.get("success") is True
            self._endpoint.require(is_taken, path, f"{reply!r}"[:200])

        await self._retry(send)

    async def _served_version(self) -> int:
        """Return the server's own number; -1 where it has another name for its weights."""
        try:
            reply = await self._reader.get(_VERSION_PATH)
            found: Any = reply.json() if reply.status_code == 200 else None
        except (httpx.HTTPError, ValueError) as error:
            raise self._silent(f"{type(error).__name__}: {error}") from error
        if not isinstance(found, dict) or "weight_version" not in found:
            raise self._silent(f"status {reply.status_code}: {reply.text[:100]}")
        told = str(found["weight_version"])
        # SGLang calls the weights that it started with `default`.
        return int(told) if told.isdecimal() else -1

    def _silent(self, found: str) -> EndpointError:
        return EndpointError(
            expected=f"the version of the weights from `{self._config.url}{_VERSION_PATH}`",
            found=found,
            fix="Check that the server is up, and of the kind of `fivefold serve` or SGLang",
        )


def _to_safetensors(model: Transformer) -> bytes:
    """Return all weights under their released names."""
    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in released_tensors(model)
    }
    return safetensors.torch.save(tensors)
