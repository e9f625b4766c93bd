"""Web curation: from raw pages to the documents worth training on, with a reason for every loss.

Reading order: `config`; what goes in: `shard`, `warc`, `raw_page`, `web_page`; `verdict` (what a
rule answers); the heuristics: `character`, `words`, `lexicon` (words as numbers), `grams`,
`repetition`, `line_edit`, `dclm` and `datatrove` (the two ways of counting), `heuristics`; pages by
where they come from and what they speak: `url`, `language`; de-duplication: `minhash`,
`near_duplicate`, `bloom`, `paragraph_dedup`; quality: `classifier`; benchmark items:
`decontaminate_config`, `benchmark_source` (where public ones can be had), `benchmark`,
`benchmark_items`, `decontaminate`; then the engine: `account` (what went in, came out and was
dropped), `page_process` (extraction that may hang or crash), `extract_step`, `step`, `dedup_step`,
`classify_step`, `decontaminate_step` and `summary` (datatrove's PipelineSteps around all of this),
`executor`, `run` (what all recipes have in common) and `dclm_baseline` (the pipeline, from a frozen
config). `sample` takes a part of a
package, `page` draws a run, `command` serves `fivefold data run` and `train-classifier`, `show`
serves `stats` and `inspect`. May import the thin path's files of `data` and the foundation; only
the steps, `summary` and `executor` import datatrove.

Glossary: a *shard* is one input file; a *verdict* is the text that a rule leaves, or the reason why
it leaves none; an *edit* is a span that it took out; a *task* is a fixed share of the shards,
whatever the workers.
"""
