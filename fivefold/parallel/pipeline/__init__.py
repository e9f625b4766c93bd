"""Pipeline parallelism: the model cut into stages that ranks run by a table of `plan`.

Reading order. `split` (which pieces of the model a stage holds, where the MTP layer goes),
`placement` (which rank holds which stage and parameter), `stage` (the pieces as a module), `shared`
(a parameter that two ranks hold). `runtime` is the one file that touches torch's pipelining
runtime, `program` what it asks of a stage, `message` what passes between stages, `safe_wait` when a
send has gone. `weight_store` keeps weight gradients for later and `deferred` makes products that
leave theirs to it. `rolling` is ZeRO-2 with two full gradient buffers, `rolling_zero` what the
optimizer sees of it, `blank` has microbatches that keep a data rank in step. `emulated` has stages
that only take time. Losses come as arguments; how it meets a training, and ranks that share a stage
along other axes, is in `train.piped`; a rank's stages alone are made by `parallel.build`. May
import `plan`, `models`, `ops` and the rest of the room but `context`, `tensor`, `tensor_rows`,
`fsdp` and `build`; never `train`.
"""
