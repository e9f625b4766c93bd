"""POST /v1/chat/completions: messages in, a parsed turn out.

The prompt is rendered and the answer parsed by `text`, which works on ids: content that spells a
special token opens nothing. Thinking comes as `reasoning_content`, calls of declared tools as
`tool_calls`.

A call is forced (`tool_choice`) without a grammar: the turn's first tokens, `<tool_call>` and the
tool's name, are given to the model as the end of the prompt. Such a turn does not think. Which of
several tools it calls is the model's choice, and so are the arguments: what it writes against the
form becomes text, as any broken call does.

Surprise: a streamed call is shown when it is whole, in as many pieces as it came, because a call
that breaks becomes text, and nothing that was sent can be taken back.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from fivefold.serve.answer import (
    Choice,
    Chunks,
    run_choices,
    sampling_params,
    stream_choices,
    token_logprob,
    usage_of,
)
from fivefold.serve.native import refused, stop_list
from fivefold.serve.openai_schema import ChatBody, ToolChoice
from fivefold.serve.reader import ChatReader
from fivefold.serve.served import Served
from fivefold.serve.worker import Completion, NewToken
from fivefold.text.conversation import read_messages
from fivefold.text.event import (
    ArgumentsDelta,
    CallBroken,
    CallDone,
    CallStart,
    ContentDelta,
    Event,
    ReasoningDelta,
)
from fivefold.text.special import END_THINK, TOOL_CALL
from fivefold.text.template import render_call_opening, render_prompt
from fivefold.text.tokenizer import Tokenizer
from fivefold.text.tool import Tool, read_tools


@dataclass(frozen=True)
class _Chat:
    """A request, read."""

    served: Served
    body: ChatBody
    rid: str
    prompt: list[int]
    opening: list[int]
    """Ids at the end of the prompt with which the answer begins: those of a forced call."""
    tools: tuple[Tool, ...]
    """Those whose calls are calls."""
    is_thinking: bool

    def reader(self) -> ChatReader:
        reader = ChatReader(
            self.served.tokenizer,
            stop_list(self.body.stop),
            tools=self.tools,
            is_thinking=self.is_thinking,
            hidden_ids=self.body.stop_token_ids or (),
        )
        events = [event for token in self.opening for event in reader.push(token)]
        assert not events, "a call is told of when its name is whole"
        return reader

    def choices(self) -> list[Choice]:
        body = self.body
        limits = (body.max_completion_tokens, body.max_tokens, self.served.context_tokens)
        most = next(limit for limit in limits if limit is not None)
        wanted = (body.top_logprobs or 0) if body.logprobs else 0
        top = min(wanted, self.served.vocab_size)
        return [
            Choice(
                k, self.prompt, sampling_params(body, max_new_tokens=most, top_logprobs=top, k=k)
            )
            for k in range(body.n or 1)
        ]

    def head(self, kind: str) -> dict[str, Any]:
        head = {
            "id": self.rid,
            "object": kind,
            "created": int(time.time()),
            "model": self.served.name,
        }
        warnings = self.body.unknown_fields()
        return {**head, "warnings": warnings} if warnings else head


def chat_router(served: Served) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["openai"])

    @router.post("/v1/chat/completions")
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        """Answer a conversation."""
        served.check_model(body.model)
        chat = _read(served, body)
        choices = chat.choices()
        for choice in choices:
            served.check_prompt(choice.prompt, choice.params)
        arguments = (served, body, choices, chat.reader, chat.rid, request)
        if body.stream:
            return await stream_choices(*arguments, _ChatChunks(chat, len(choices)))
        done = await run_choices(*arguments)
        return JSONResponse(_answer(chat, done))

    return router


def _read(served: Served, body: ChatBody) -> _Chat:
    messages = read_messages(body.messages)
    declared = read_tools(body.tools)
    if body.response_format and body.response_format.get("type") != "text":
        kind = repr(body.response_format.get("type"))
        raise refused("`response_format` of type text: there is no grammar", kind)
    if body.top_logprobs and not body.logprobs:
        raise refused("`logprobs` beside `top_logprobs`", "`top_logprobs` alone")
    thinks, clears = _thinking(body)
    tools = () if body.tool_choice == "none" else declared
    forced, opening = _forced(body, tools), []
    if forced:
        name = forced[0].name if len(forced) == 1 else None
        opening, thinks = render_call_opening(name, served.tokenizer), False
    prompt = render_prompt(
        messages, served.tokenizer, tools=tools, enable_thinking=thinks, clear_thinking=clears
    )
    rid = body.request_id or served.new_name("chatcmpl")
    return _Chat(served, body, rid, [*prompt, *opening], opening, forced or tools, thinks)


def _forced(body: ChatBody, tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    """Return the tools of which one has to be called; none where the model decides."""
    choice = body.tool_choice
    if isinstance(choice, ToolChoice):
        named = tuple(tool for tool in tools if tool.name == choice.function.name)
        if not named:
            raise refused("`tool_choice` of a declared tool", repr(choice.function.name))
        return named
    if choice == "required" and not tools:
        raise refused("`tools` beside `tool_choice` of required", "none")
    return tools if choice == "required" else ()


def _thinking(body: ChatBody) -> tuple[bool, bool]:
    """Return whether the turn thinks, and whether the thinking of earlier turns is dropped."""
    settings: dict[str, Any] = {"enable_thinking": True, "clear_thinking": True}
    if body.reasoning_effort == "none":
        settings["enable_thinking"] = False
    if body.thinking is not None:
        kind = body.thinking.get("type", "enabled")
        if kind not in ("enabled", "disabled"):
            raise refused("`thinking.type` of enabled or disabled", repr(kind))
        settings["enable_thinking"] = kind == "enabled"
        clears = body.thinking.get("clear_thinking")
        settings["clear_thinking"] = True if clears is None else clears
    for name, value in (body.chat_template_kwargs or {}).items():
        if name not in settings:
            known = ", ".join(settings)
            raise refused(f"`chat_template_kwargs` of {known}", repr(name))
        settings[name] = value
    for name, value in settings.items():
        if not isinstance(value, bool):
            raise refused(f"`{name}` to be true or false", repr(value))
    return settings["enable_thinking"], settings["clear_thinking"]


@dataclass
class _TurnDeltas:
    """Makes OpenAI's deltas of one turn from a reader's events."""

    call_prefix: str
    calls: int = 0
    _held: list[dict[str, Any]] = field(default_factory=list)

    def of(self, events: Iterable[Event]) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        for event in events:
            match event:
                case ReasoningDelta(text):
                    deltas.append({"reasoning_content": text})
                case ContentDelta(text):
                    deltas.append({"content": text})
                case CallStart(_, name):
                    function = {"name": name, "arguments": ""}
                    call = {"id": f"{self.call_prefix}-{self.calls}", "type": "function"}
                    self._held = [{"index": self.calls, **call, "function": function}]
                case ArgumentsDelta(_, text):
                    piece = {"index": self.calls, "function": {"arguments": text}}
                    self._held.append(piece)
                case CallBroken():
                    self._held = []
                case CallDone():
                    deltas += [{"tool_calls": [piece]} for piece in self._held]
                    self._held, self.calls = [], self.calls + 1
        return deltas


def _whole(deltas: Sequence[dict[str, Any]], *, is_thinking: bool) -> dict[str, Any]:
    """Return the message that deltas add up to."""
    content = "".join(delta.get("content", "") for delta in deltas)
    reasoning = "".join(delta.get("reasoning_content", "") for delta in deltas)
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        for piece in delta.get("tool_calls", ()):
            if piece["index"] == len(calls):
                function = dict(piece["function"])
                calls.append({"id": piece["id"], "type": "function", "function": function})
            else:
                calls[-1]["function"]["arguments"] += piece["function"]["arguments"]
    message: dict[str, Any] = {"role": "assistant", "content": content or None}
    if not calls:
        message["content"] = content
    if is_thinking:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def _finish_reason(completion: Completion, calls: int) -> str:
    return "tool_calls" if calls and completion.finish == "stop" else completion.finish


def _reasoning_tokens(chat: _Chat, ids: Sequence[int]) -> int:
    """Return how many ids belong to the thinking, the tag that ends it included."""
    if not chat.is_thinking:
        return 0
    tokenizer: Tokenizer = chat.served.tokenizer
    end, call = tokenizer.id_of(END_THINK), tokenizer.id_of(TOOL_CALL)
    for place, token in enumerate(ids):
        if token in (end, call):
            return place + (token == end)
    return len(ids)


def _answer(chat: _Chat, done: Sequence[Completion]) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    for index, completion in enumerate(done):
        reader = chat.reader()
        turn = _TurnDeltas(f"call-{chat.rid}-{index}")
        events = [event for token in completion.ids for event in reader.push(token)]
        message = _whole(turn.of([*events, *reader.finish()]), is_thinking=chat.is_thinking)
        logprobs = None
        if chat.body.logprobs:
            pairs = zip(completion.ids, completion.logprobs, strict=True)
            entries = [token_logprob(chat.served.tokenizer, *pair) for pair in pairs]
            logprobs = {"content": entries, "refusal": None}
        choice = {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": _finish_reason(completion, turn.calls),
            "matched_stop": reader.matched,
        }
        if chat.body.return_token_ids:
            choice["token_ids"] = completion.ids
        choices.append(choice)
    reasoning = sum(_reasoning_tokens(chat, completion.ids) for completion in done)
    answer = {
        **chat.head("chat.completion"),
        "choices": choices,
        "usage": usage_of(len(chat.prompt), done, reasoning),
    }
    return {**answer, "prompt_token_ids": chat.prompt} if chat.body.return_token_ids else answer


class _ChatChunks(Chunks):
    """The chunks of a streamed chat."""

    def __init__(self, chat: _Chat, choices: int) -> None:
        super().__init__(chat.head("chat.completion.chunk"), chat.body, len(chat.prompt))
        self._chat = chat
        self._readers = [chat.reader() for _ in range(choices)]
        self._turns = [_TurnDeltas(f"call-{chat.rid}-{k}") for k in range(choices)]

    def begin(self) -> list[dict[str, Any]]:
        """Return the role of each choice."""
        more = {"prompt_token_ids": self._chat.prompt} if self._chat.body.return_token_ids else {}
        delta = {"role": "assistant", "content": ""}
        return [
            self.chunk(
                {"index": k, "delta": delta, "logprobs": None, "finish_reason": None}, **more
            )
            for k in range(len(self._readers))
        ]

    def token(self, index: int, new: NewToken) -> list[dict[str, Any]]:
        """Return the deltas of a token; its id and score go with the first of them."""
        deltas = self._turns[index].of(self._readers[index].push(new.id))
        more: dict[str, Any] = {}
        if self._chat.body.logprobs:
            entry = token_logprob(self._chat.served.tokenizer, new.id, new.logprob)
            more["logprobs"] = {"content": [entry], "refusal": None}
        if self._chat.body.return_token_ids:
            more["token_ids"] = [new.id]
        if more and not deltas:
            deltas = [{}]
        return [
            self._chunk(index, delta, **(more if place == 0 else {}))
            for place, delta in enumerate(deltas)
        ]

    def finish(self, index: int, completion: Completion) -> list[dict[str, Any]]:
        """Return what was held back, and the reason of the end."""
        super().finish(index, completion)
        self.reasoning_tokens += _reasoning_tokens(self._chat, completion.ids)
        turn, reader = self._turns[index], self._readers[index]
        chunks = [self._chunk(index, delta) for delta in turn.of(reader.finish())]
        reason = _finish_reason(completion, turn.calls)
        last = self._chunk(index, {}, finish_reason=reason, matched_stop=reader.matched)
        return [*chunks, last]

    def _chunk(self, index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        plain = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return self.chunk({**plain, **more})
