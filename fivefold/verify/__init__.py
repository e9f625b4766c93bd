"""Answer checking, shared by RL and evaluation: an answer and a spec become a verdict.

Reading order: `verdict` (three states), `config` (specs, chosen by name), `answer` (where in a turn
the answer stands), `number`, `normal_form` (of LaTeX), `maths`, `rule` (exact, number, format),
`verifier` (the front door), `pool`, `worker` and `worker_process` (code that may hang or crash runs
in a process that can be killed), `symbolic` (math-verify, inside such a process), `target` (a
function by name), `extra` (optional packages). May import text and the foundation; no torch.
"""
