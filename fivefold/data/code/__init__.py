"""Code curation: from repositories to texts and issue sequences, with a reason for every loss.

Reading order: `config`; what goes in: `repository`, `git`, `metadata` (does a record belong to its
content); languages: `language` (the table), `evidence`, `identify`; rules: `lexer`, `measure`,
`heuristics`; `secret`; quality: `quality` (rule and tiers), `backoff` (classifiers), `sampling`
(epochs by tier and language); texts: `fim`, `imports`, `concatenate`; issue sequences: `link`,
`retrieve`, `diff`, `issue`; then datatrove's steps around all of this, `step`, `score_step` and
`pack_step`, and `glm5_code`, the pipeline; `recipe` gives it its name. Near-duplicates, accounts
and the executor are those of `data/curate`. May import those, the thin path's files of `data`,
`text` and the foundation; only the steps import datatrove.

Glossary: a *repository* is what its files share a name in, a shard its smallest share of work; a
*record* is what metadata say of a file's content; a *tier* is a rank of quality within a language;
an *edition* is one pass over a repository's files; a *mark* is a place in a text that is a special
token; a *change* is a commit of the main line against its first parent; a *sequence* is one change
with its issue and the files as they were.
"""
