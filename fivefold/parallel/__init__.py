"""Several processes train one model; parallelism is applied to it from outside.

Reading order: `config` (axes, ZeRO stage; torch-free), `mesh` (processes and their groups),
`ledger`, `collectives` (every call is recorded), `row_shard` (which rows of a parameter a rank
holds, flat buckets), `gradient_stream` (gradients that leave early), `zero` (what optimizer and
step know of sharding, and stages 0 to 2), `muon` (owners of matrices), `saver` (states that any
mesh can load), `failure` (first cause), `launch` (torchrun), `host_link`, `offload_ledger`,
`offload` (what blocks save waits on the host), `pipeline` (stages on torch's runtime), `context`
(ranks share the tokens of rows). How it meets a training is in `train.data_parallel`.

A model in parts is read as `part` (what a rank holds of each parameter), `sequence` (whole or own
tokens), `vocabulary`, `tensor_attention`, `tensor_exchange`, `expert_exchange`, `expert` (the
dispatcher), `tensor` (`SplitModel` puts them around a model), `fsdp` (stage 3: what it has is
sharded), `row_bucket` and `tensor_rows` (`SplitRows`: its gradients and weights by rows) and
`build` (a rank's part of a model, made without the rest).

A new axis asks `mesh.group("tp")` for its ranks, sends through `collectives`, and is tested in
`tests/parallel` with a `Team` of processes on the tiny model of `tiny_training`. May import
`models`, `ops`, `plan` and the foundation; never `train`: the loss and the numbers of the update
come as arguments.
"""
