"""Serving: token ids in, token ids and log-probabilities out, prefixes shared, caches paged.

Reading order: `request` and `batch` (two of the three nouns), `engine` (the third, and the life of
a request), `scheduler`, `pool`, `prefix_tree`, `execute`, `runner`, `fused`, `attend`, `feed`,
`sampler`, `stable_runner` (deterministic mode), `account`, `weights`, `statistics`, `config`,
`worker`, `apart`: the core, which knows nothing of training, tokenizers or HTTP. Then the server:
`served`, `fault`, `reader`; SGLang's routes `native_schema`, `native`, `push`, `control`,
`exposition`; OpenAI's `openai_schema`, `answer`, `chat`, `complete`; `app`, `launch`; and the
engine for callers in the same process: `embedded`, `dialogue`, `terminal`. `token_model` lets
`data` score documents. May import models, text and what is below.

Shapes beside the legend of `models`: T tokens of a step, P query rows, M rows to sample,
X = R + C numbers of one key in the pool.
"""
