"""Gradient stages: from packed rows to a trained checkpoint.

Reading order: `config`, `stages` (the recipe's torch-free handles), `pretrain`, `loop`, `step`,
`losses`, `batch`, `balance` (router bias), `optimizer` with `muon`, `data_parallel` (several
ranks), `staged_loss` and `piped` (the losses and the model in pipeline stages), `compute` with
`activations` (what is kept, moved or computed again), `schedule`, `checkpoint` (resume),
`evaluate`, `sample`; `midtrain` and `adapt_dsa` go on from there, `sft` with `sft_config` and
`sft_sample` learns from conversations. May import `parallel`, `models`, `data`, `ops`, `plan` and
everything below; never `serve` or `recipes`.
"""
