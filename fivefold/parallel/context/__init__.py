"""Context parallelism: ranks along `cp` share the tokens of a microbatch's rows.

Reading order: `work` (what a token costs, by the model's own counts; torch-free), `assignment`
(which rank takes which chunks: contiguous, zigzag, balanced; torch-free), `exchange` (tokens of
all ranks to every rank, heads for tokens; collectives with gradients), `two_phase` (the exchange of
heads within nodes first), `shard` (one microbatch's tokens of this rank), `attention` (latent
attention over keys of all ranks), `heads` (the same with some of the heads, beside `tp`), `across`
(`ContextParallel`, what a training step asks).

Outside attention a token needs no other, so that a rank runs its tokens as one row, in any order;
its share of the loss is that of its labels, and shares and gradients add up over the ranks. May
import `plan`, `models`, `ops`, the room's mesh and collectives; never `train`.
"""
