"""GLM-5's additions to web curation: a second classifier, rescued facts, tiers and their epochs.

Reading order: `config`; texts of a known kind: `reference`, `entry`; pages marked for what they
know: `knowledge_label`; texts as numbers: `embed`, `endpoint_embedder`, `fact_density`; a
classifier over them: `head`, `calibrate`, `classifier`, `train` (what the command does); `sample`
(which documents are used for what), `quality` (fastText scores as percentiles), `tier` (who is
best, added, rescued); then datatrove's PipelineSteps around all of this, `label_step`,
`learn_step`, `score_step` and `tier_step`, and `glm5_web` (the pipeline, from a frozen config).
`recipe` names it for `fivefold data run`. May import `curate`, the embedder's protocol and the
light vectors of `long`, the endpoint that gives marks of `maths`, and what those may.

Glossary: a *window* is a part of a document that is embedded by itself; a *percentile* is the share
of a run's documents that score lower; a *tier* is a class of documents that are seen equally often;
a document is *added* when the embedding classifier lifts it into the top tier, and *rescued* when
the facts that it states keep it in spite of its quality.
"""
