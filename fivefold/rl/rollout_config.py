"""Where rollouts come from: the engine in this process, or a server by its URL."""

from typing import Literal

import pydantic

from fivefold.config import Config, Runtime


class RolloutConfig(Config):
    """Who samples.

    With a server, draws still come from seeds; whether its numbers are those of the engine here, to
    the last bit, is a matter of its kernels and of who shares a batch (`--deterministic` of
    `fivefold serve` makes them so). That is why the place belongs to what a run is.
    """

    url: str = pydantic.Field(default="", pattern=r"^(https?://.+)?$")
    """A server in SGLang's shape, `fivefold serve` or SGLang; empty: the engine in this process."""
    push: Literal["tensor", "disk"] = "tensor"
    """How new weights reach it: as bytes (`fivefold serve` alone), or as a checkpoint directory
    that it reads (SGLang too; both need to see the same disk)."""
    concurrency: Runtime[int] = pydantic.Field(default=256, gt=0)
    """Requests on their way at a time."""
    timeout_seconds: Runtime[float] = pydantic.Field(default=600.0, gt=0)
    """Longest wait for an answer."""
    retries: Runtime[int] = pydantic.Field(default=3, ge=0)
    """Times that a request is sent again after no answer, half an answer, or "come back later"; its
    seed makes the answer the same."""
    retry_seconds: Runtime[float] = pydantic.Field(default=1.0, ge=0)
    """Wait before the first repetition; each further one takes twice as long."""
