"""GLM-5's special tokens, in the order of the released vocabulary.

They stand at the end of the vocabulary, after every regular id, followed by a reserved block that
later stages can claim without resizing an embedding. Order: the tokenizer configuration of
`zai-org/GLM-5`, whose first special id is 154,820.

Surprise: the markup tokens (`<think>`, `<tool_call>`, ...) have ids of their own, but count as
visible text: they survive `decode(skip_special=True)`, because parsers of answers read them.
"""

END_OF_TEXT = "<|endoftext|>"
"""Ends a document, a conversation and a generation; also the padding token."""
GENERATION_MASK = "[gMASK]"
"""First token of every row; a relic of GLM's blank-filling objective."""
START_OF_PIECE = "<sop>"
"""Second token of every row."""
SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
OBSERVATION = "<|observation|>"
THINK = "<think>"
END_THINK = "</think>"
TOOL_CALL = "<tool_call>"
END_TOOL_CALL = "</tool_call>"
ARGUMENT_KEY = "<arg_key>"
END_ARGUMENT_KEY = "</arg_key>"
ARGUMENT_VALUE = "<arg_value>"
END_ARGUMENT_VALUE = "</arg_value>"
TOOL_RESPONSE = "<tool_response>"
END_TOOL_RESPONSE = "</tool_response>"
NO_THINK = "/nothink"
"""GLM-4.5's switch at the end of a user's message; the format has no use for it since GLM-4.7."""

MARKUP_TOKENS = (
    THINK,
    END_THINK,
    TOOL_CALL,
    END_TOOL_CALL,
    TOOL_RESPONSE,
    END_TOOL_RESPONSE,
    ARGUMENT_KEY,
    END_ARGUMENT_KEY,
    ARGUMENT_VALUE,
    END_ARGUMENT_VALUE,
    NO_THINK,
)
"""Tokens that structure an answer and stay visible when special tokens are skipped."""

NAMED_TOKENS = (
    END_OF_TEXT,
    "[MASK]",
    GENERATION_MASK,
    "[sMASK]",
    START_OF_PIECE,
    "<eop>",
    SYSTEM,
    USER,
    ASSISTANT,
    OBSERVATION,
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|begin_of_audio|>",
    "<|end_of_audio|>",
    "<|begin_of_transcription|>",
    "<|end_of_transcription|>",
    "<|code_prefix|>",
    "<|code_middle|>",
    "<|code_suffix|>",
    *MARKUP_TOKENS,
    "<|begin_of_box|>",
    "<|end_of_box|>",
    "<|image|>",
    "<|video|>",
)
"""The 36 tokens that GLM-5 names."""

RESERVED_TOKENS = tuple(f"<|reserved_{index}|>" for index in range(128))
"""Spare ids for later stages."""

SPECIAL_TOKENS = NAMED_TOKENS + RESERVED_TOKENS
"""All special tokens; the first has id `vocab_size - len(SPECIAL_TOKENS)`."""

STOP_TOKENS = (END_OF_TEXT, USER, OBSERVATION)
"""Tokens that end an assistant turn: GLM has no end-of-turn token, the next role ends it."""
