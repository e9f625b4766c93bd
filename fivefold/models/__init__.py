"""The architecture: plain single-device modules, shared by training, serving and planning.

Reading order: `config` (the released field names), `transformer`, `mla`, `indexer`, `moe`, `mtp`,
`layer`, `cache`, `initialise`, `convert` (Hugging Face directories), `generate`; `preset` holds the
named shapes. May import `ops` and everything below; knows nothing of data, processes or optimizers.

Shape legend, for tensors with two or more axes here and in `ops`: B rows, T queries, S keys,
D width, H heads, N no-position channels, R rotary channels, Q = N + R query-key channels, V value
channels, C latent rank, I indexer heads, J indexer channels, K selected keys, E experts, A experts
per token, F expert width, W vocabulary, P token-expert pairs (tokens x A, sorted by expert).
"""
