"""Text and tokens: the only place where characters become ids, and ids characters.

Reading order: `special` (GLM-5 tokens), `config`, `bpe` (training), `tokenizer` (encoding,
framing, stream decoding, loading), `conversation` (messages), `template` (messages to ids and loss
mask), `chat_template` (the same rendering in jinja, for other engines). May import the foundation
only; no torch.
"""
