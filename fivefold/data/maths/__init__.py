"""Curation of maths and science: formulas kept, marks given, templates and machine text refused.

Reading order: `config`; formulas: `mathml`, `formula`; marks: `rule`, `chunk` (long documents in
parts, and how their marks are joined), `head` (the small scorer), `endpoint`, `scorer` (who
scores); what is refused: `template`, `calibration`, `machine_text`; then the steps, `step` and
`score_step`, `glm5_math` (the pipeline) and `recipe` (its name). Benchmark items are looked for by
`data/curate/decontaminate`, as in every recipe. May import `curate`, the scorer's protocol, the
vectors and the grouping of `long`, `text` and the foundation; only the steps import datatrove.

Glossary: a *formula* is TeX between dollars; a *part* is a run of a document that is scored by
itself; a *mark* is 0 to 5; a *tell* is a phrase with which a model speaks of itself; a *skeleton*
is a line with its values masked.
"""
