"""The bodies of the OpenAI routes.

Source: OpenAI's API reference (chat completions, completions), with the extensions that vLLM and
SGLang share (`top_k`, `min_p`, `stop_token_ids`, `return_token_ids`, `chat_template_kwargs`) and
Z.ai's `thinking`. A field that would change the answer and cannot be honoured is refused; one that
nobody here knows is let through and named in the answer's `warnings`.
"""

from typing import Any, Literal

import pydantic

from fivefold.serve.native_schema import Body, Id, Name, StopString, StopStrings


class StreamOptions(Body):
    """OpenAI's `stream_options`."""

    include_usage: bool | None = None
    """Send the usage in a last chunk without choices."""


class SamplingBody(Body):
    """What both routes take."""

    model: str | None = None
    """The served model's name; may be left out."""
    stream: bool | None = None
    """Answer as server-sent events."""
    stream_options: StreamOptions | None = None
    """See there."""
    n: int | None = pydantic.Field(default=None, ge=1, le=128)
    """Answers to one prompt."""
    max_tokens: int | None = pydantic.Field(default=None, ge=0)
    """Tokens to add at most."""
    temperature: float | None = pydantic.Field(default=None, ge=0)
    """Divides the logits; 0 takes the best token; 1 if not given."""
    top_p: float | None = pydantic.Field(default=None, gt=0, le=1)
    """Keep the smallest set of best tokens with at least this probability."""
    top_k: int | None = pydantic.Field(default=None, ge=-1)
    """Keep this many best tokens; -1 or 0 keeps all."""
    min_p: float | None = pydantic.Field(default=None, ge=0, le=1)
    """Keep tokens of at least this share of the best token's probability."""
    seed: int | None = None
    """Seed of the draws; the k-th answer takes seed + k."""
    stop: StopString | StopStrings | None = None
    """Texts that end the answer."""
    stop_token_ids: list[Id] | None = None
    """Ids that end the answer."""
    ignore_eos: bool = False
    """Go on past the model's own stop ids."""
    logit_bias: dict[str, float] | None = None
    """Id, as a string, to the amount added to its logit."""
    frequency_penalty: float | None = None
    """Not supported: 0 only."""
    presence_penalty: float | None = None
    """Not supported: 0 only."""
    return_token_ids: bool | None = None
    """Report the ids of the prompt and of the answer."""
    request_id: Name | None = None
    """Names the request, for /abort_request."""
    priority: int = pydantic.Field(default=0, ge=-(2**31), lt=2**31)
    """Higher ones leave the queue first."""
    cache_salt: str | None = None
    """Only requests of the same salt share prefixes."""
    user: str | None = None
    """Without effect."""


class NamedFunction(Body):
    """The function of a `ToolChoice`."""

    name: str
    """One of the declared tools."""


class ToolChoice(Body):
    """OpenAI's form of a tool that must be called."""

    type: Literal["function"]
    """Nothing else can be called."""
    function: NamedFunction
    """Which."""


class ChatBody(SamplingBody):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = pydantic.Field(min_length=1)
    """The conversation, see `text.conversation`."""
    tools: list[dict[str, Any]] | None = None
    """Declared tools."""
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    """none hides the tools; required, or a tool, begins the answer with a call, unthinkingly."""
    parallel_tool_calls: bool | None = None
    """Without effect: the model decides."""
    max_completion_tokens: int | None = pydantic.Field(default=None, ge=0)
    """The newer name of `max_tokens`."""
    logprobs: bool | None = None
    """Report the log-probability of each token."""
    top_logprobs: int | None = pydantic.Field(default=None, ge=0, le=20)
    """Most likely alternatives at each token."""
    chat_template_kwargs: dict[str, Any] | None = None
    """`enable_thinking` and `clear_thinking`."""
    thinking: dict[str, Any] | None = None
    """Z.ai's form: `type` is enabled or disabled; `clear_thinking`."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """none answers without thinking; the rest is the model's own measure."""
    response_format: dict[str, Any] | None = None
    """`{"type": "text"}` only."""


class CompletionBody(SamplingBody):
    """POST /v1/completions."""

    prompt: str | list[Id] | list[str] | list[list[Id]]
    """One prompt or several, as text or ids."""
    echo: bool | None = None
    """Give the prompt back before the answer, log-probabilities included."""
    logprobs: int | None = pydantic.Field(default=None, ge=0, le=20)
    """Report log-probabilities, with this many alternatives."""
    suffix: None = None
    """Not supported."""
    best_of: Literal[1] | None = None
    """Not supported."""
