"""Documents to packed rows: everything between a package archive and the ids of a training batch.

Reading order: `pipeline` (the corpus as a list of steps), `config`, `source` (the catalogue),
`download`, `archive`, `reader`, `extract`, `document`, `ledger`, `dedup`, `split`; then
`token_file`, `packing`, `order`, `mixture`, `loader`; `stages` puts both halves into a recipe and
`command` serves `fivefold data get`. May import `text`, `stage`, `metrics` and the foundation; no
torch.

Glossary: a *document* is one text with its origin; a *piece* is a span of one tokenised document;
a *row* is `context_tokens + 1` ids that a model sees at once, so that every place has its next
token; a *pack* is the table that says which pieces make up which row.
"""
