"""Long-context synthesis: from documents to sequences whose tokens depend on what stands far away.

Reading order: `config`; `scorer` (what a model is asked for, and how it comes in without torch);
`measure` (sizes in tokens), `chunk`, `vectors`, `library` (all documents, their chunks and what is
similar), `gap` (distances and depths, and their statistics), `made` (what became of a unit); then
the methods: `natural`, `nextlong`, `entropylong`, `interleave`, `repository`, and MRCR-like
conversations in `mrcr_text`, `mrcr_variant`, `mrcr`, `mrcr_score`; `step` (datatrove's
PipelineSteps around them) and `midtrain_long` (the recipe, from a frozen config). May import
`curate`, the thin path's files of `data`, `text` and the foundation; only the steps import
datatrove.

Glossary: a *root* is the document around which a sequence is built; a *chunk* is a run of whole
lines of one document; a *negative* is a chunk of another document that is similar to one of the
root's; a *dependency* is a place of a sequence together with the earlier place that helps to
predict it; its *gap* is their distance in tokens, its *depth* the earlier place's share of the
sequence; a *needle* is one of several answers to the same request in a conversation.
"""
