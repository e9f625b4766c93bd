"""Text and tokens: the only place where characters become ids, and ids characters.

Reading order: `special` (GLM-5 tokens), `config`, `bpe` (training), `tokenizer` (encoding,
framing, stream decoding, loading), `tool` (declarations and calls), `argument` (their values),
`conversation` (messages), `template` (messages to ids and loss mask), `mask` (parts that are not
learned), `chat_template` (the same rendering in jinja, for other engines), `event` (what a parser
tells), `turn` (a generated turn as a state machine), `parse` (its front ends for ids and text);
`completer` (what continues and scores ids, whatever stands behind it) and its clients `endpoint`,
`sglang_completer`, `openai_completer`, `scripted`. May import the foundation only; no torch.
"""
