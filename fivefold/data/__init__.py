"""Documents to packed rows: everything between a package archive and the ids of a training batch.

Reading order: `corpus_config`, `corpus_stage` (pages and repositories to a corpus), `pipeline`
(what follows curation, as a list of steps), `config`, `source` (the catalogue), `download`,
`archive`, `extract`, `document`, `ledger`, `dedup`, `split`, `factory` (functions of rooms above);
then `tokenise`, `token_file`, `packing`, `order`, `mixture`, `packed_source`, `loader`. Facts
planted in text, for long contexts: `planted`, `fact`, `planted_words`, `haystack`,
`planted_tokens`. Conversations for fine-tuning: `conversation_config`, `conversation_file`,
`conversation_sample`, `conversation_ledger`, `conversation_rows`; attempts at tasks, and which of
them are worth learning: `attempt_file`, `attempts`, `chosen`, `choose`, `choose_page`. `stages`
puts it all into a recipe, `page`, `corpus_page` and `planted_page` draw it, `command` serves
`fivefold data get` and `command_line` names the flags of all of `fivefold data`. Curation has rooms
of its own: `curate` (the engine and DCLM's recipe), `web`, `code`, `maths`, `long`. May import
`text`, `stage`, `metrics` and the foundation; no torch.

Glossary: a *document* is one text with its origin; a *piece* is a span of one tokenised document; a
*row* is `context_tokens + 1` ids that a model sees at once, so that every place has its next token;
a *pack* is the table that says which pieces make up which row; a *planted fact* is a short
statement in real text that is asked for again at the end, a *distractor* another of its form.
"""
