"""An embedder over OpenAI's `/v1/embeddings`: vLLM's, SGLang's, or any other server of the kind.

Nothing is retried; a fault of the server ends the step, and the next launch goes on from there.
Surprise: rows may come back in any order, so they are placed by their `index`.
"""

import asyncio
from collections.abc import Sequence

import httpx
import numpy as np
from numpy.typing import NDArray

from fivefold.text.endpoint import Endpoint, WireReply

_PATH = "/v1/embeddings"


class _Row(WireReply):
    index: int
    embedding: list[float]


class _Reply(WireReply):
    data: list[_Row]


class EndpointEmbedder:
    """See `fivefold.data.long.scorer.Embedder`."""

    def __init__(
        self, url: str, model: str, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """Ask `model` at `url` (without `/v1`)."""
        self._url, self._model, self._transport = url, model, transport

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the server's vectors, in the order of the texts.

        Raises:
            RefusedError, OverloadedError, EndpointError: see there.
        """
        return asyncio.run(self._embed(texts))

    async def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        endpoint = Endpoint(self._url, transport=self._transport)
        try:
            # A blank text is no input for most servers.
            body = {"model": self._model, "input": [text.strip() or "." for text in texts]}
            reply = endpoint.read(_Reply, await endpoint.post(_PATH, body), _PATH)
        finally:
            await endpoint.close()
        rows = sorted(reply.data, key=lambda row: row.index)
        places = [row.index for row in rows]
        endpoint.require(places == list(range(len(texts))), _PATH, f"rows {places[:8]}")
        widths = {len(row.embedding) for row in rows}
        endpoint.require(len(widths) == 1, _PATH, f"vectors of {sorted(widths)} numbers")
        vectors = np.array([row.embedding for row in rows], dtype=np.float32)
        endpoint.require(bool(np.isfinite(vectors).all()), _PATH, "a number that is not finite")
        return vectors
