"""Numeric functions, one a file: `reference` first (the specification), the fast path second.

Reading order: `product` (fp32 products with weights), `bf16` (who has them in hardware),
`select_topk` (the one selection rule), `rotary`, `rms_norm`, `attention`, `experts`,
`newton_schulz` (the orthogonalisation inside Muon), `chunked_cross_entropy` (the output head and
its loss without whole logits). May import torch, `config`, `log` and `errors`; knows nothing of
modules, data or training. Shape suffixes follow the legend in `fivefold.models`.
"""
