"""The bodies of the native routes, in SGLang's shapes.

Source: SGLang's `io_struct.GenerateReqInput` and its sampling parameters. Fields that are not known
here are let through and named in the answer's `warnings`. Everything is strict: `"5"` is no number.
"""

from typing import Annotated, Literal

import pydantic

Id = Annotated[int, pydantic.Field(ge=0)]
Name = Annotated[str, pydantic.Field(min_length=1, max_length=256)]
StopString = Annotated[str, pydantic.Field(min_length=1, max_length=256)]
StopStrings = Annotated[list[StopString], pydantic.Field(max_length=16)]


class Body(pydantic.BaseModel):
    """Base of all bodies."""

    model_config = pydantic.ConfigDict(
        extra="allow", strict=True, frozen=True, use_attribute_docstrings=True
    )

    def unknown_fields(self) -> list[str]:
        """Return a warning for each field that nobody reads."""
        return [f"ignored unknown field {name!r}" for name in sorted(self.model_extra or {})]


class NativeSampling(Body):
    """SGLang's `sampling_params`."""

    max_new_tokens: int = pydantic.Field(default=128, ge=0)
    """Tokens to add at most; 0 scores the input."""
    temperature: float = pydantic.Field(default=1.0, ge=0)
    """Divides the logits; 0 takes the best token."""
    top_p: float = pydantic.Field(default=1.0, gt=0, le=1)
    """Keep the smallest set of best tokens with at least this probability."""
    top_k: int = pydantic.Field(default=-1, ge=-1)
    """Keep this many best tokens; -1 or 0 keeps all."""
    min_p: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Keep tokens of at least this share of the best token's probability."""
    stop: StopString | StopStrings | None = None
    """Texts that end the output."""
    stop_token_ids: list[Id] | None = None
    """Ids that end the output."""
    ignore_eos: bool = False
    """Go on past the model's own stop ids."""
    sampling_seed: int | None = None
    """Seed of the draws."""
    logit_bias: dict[str, float] | None = None
    """Id, as a string, to the amount added to its logit."""
    n: int = pydantic.Field(default=1, ge=1, le=128)
    """Outputs of each input."""
    skip_special_tokens: bool = True
    """Leave control tokens out of `text`."""
    no_stop_trim: bool = False
    """Keep the stop string, or stop token, in `text`."""
    spaces_between_special_tokens: bool = True
    """Without effect: byte-level text has no such spaces."""


class GenerateBody(Body):
    """POST /generate."""

    input_ids: list[Id] | list[list[Id]] | None = None
    """One prompt, or a batch of them."""
    text: str | list[str] | None = None
    """The same as text; give one of the two."""
    sampling_params: NativeSampling | list[NativeSampling] = NativeSampling()
    """For all, or one each."""
    rid: Name | list[Name] | None = None
    """Names of the requests, for /abort_request."""
    return_logprob: bool = False
    """Report log-probabilities."""
    logprob_start_len: int = pydantic.Field(default=-1, ge=-1)
    """First input position that is scored; -1: none."""
    top_logprobs_num: int = pydantic.Field(default=0, ge=0, le=100)
    """Most likely alternatives at each output token."""
    return_text_in_logprobs: bool = False
    """Spell the tokens of log-probabilities."""
    stream: bool = False
    """Answer as server-sent events, each with all output so far."""
    session_id: str | None = None
    """For routers; one engine finds prefixes by their tokens."""
    return_routed_experts: bool = False
    """Report the experts of each token."""
    priority: int = pydantic.Field(default=0, ge=-(2**31), lt=2**31)
    """Higher ones leave the queue first."""
    extra_key: str | None = None
    """Only requests of the same key share prefixes."""


class PauseBody(Body):
    """POST /pause_generation."""

    mode: Literal["abort", "in_place", "retract"] = "abort"
    """Abort what runs, keep its keys, or send it back to the queue."""


class AbortBody(Body):
    """POST /abort_request."""

    rid: str = ""
    """Which request; of a batch, each has its own."""
    abort_all: bool = False
    """All of them."""


VERSION_PATTERN = r"^[0-9]{1,18}$"
Version = (
    Annotated[int, pydantic.Field(ge=0, lt=10**18)]
    | Annotated[str, pydantic.Field(pattern=VERSION_PATTERN)]
)


class DiskWeightsBody(Body):
    """POST /update_weights_from_disk."""

    model_path: str = pydantic.Field(min_length=1, max_length=4096)
    """A Hugging Face directory, on this machine."""
    weight_version: Version | None = None
    """A number above the present one; the next one if not given."""
    abort_all_requests: bool = False
    """End what runs first, with what it has."""
    flush_cache: Literal[True] = True
    """Prefixes of other weights are never kept."""


class TensorWeightsBody(Body):
    """POST /update_weights_from_tensor, with JSON."""

    serialized_named_tensors: list[str] = pydantic.Field(min_length=1)
    """safetensors files in base64, which together hold all weights under their released names."""
    weight_version: Version | None = None
    """A number above the present one; the next one if not given."""
    abort_all_requests: bool = False
    """End what runs first, with what it has."""
    load_format: Literal["safetensors"] | None = None
    """How the tensors are written; pickles are not read."""
    flush_cache: Literal[True] = True
    """Prefixes of other weights are never kept."""
