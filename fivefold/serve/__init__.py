"""Serving: token ids in, token ids and log-probabilities out, prefixes shared, caches paged.

Reading order: `request` and `batch` (two of the three nouns), `engine` (the third, and the life of
a request), `scheduler`, `pool`, `prefix_tree`, `execute`, `runner`, `fused`, `attend`, `sampler`,
`stable_runner` (deterministic mode), `account`, `weights`, `statistics`, `config`, `worker`. May
import models and what is below; knows nothing of training, tokenizers or HTTP.

Shapes beside the legend of `models`: T tokens of a step, P query rows, M rows to sample,
X = R + C numbers of one key in the pool.
"""
