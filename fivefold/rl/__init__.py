"""Reinforcement learning: from groups of samples to a loss a token.

Reading order: `config`, `preset` (published algorithms by name), `sample`, `advantage` (groups to
advantages), `pack` (samples to rows), `streams` (what a loss reads), the losses `icepop`,
`double_sided`, `surrogate` (PPO, DAPO, Dr.GRPO), `truncated`, `gspo`, `cispo`, then `distillation`
(a teacher's advantages), `algorithm` (config to function), `reduction` (the one denominator rule),
`head` (a loss through the output head), `mismatch` (trainer against engine); then the loop:
`loop_config`, `prompt`, `rollout`, `collect`, `forward`, `learner`, `loop`, `progress`, `examine`,
`dump`, `shown` (rollouts token by token), `page`; and the stages `reinforce`, `teacher`, `distil`,
`task_prompt`, `own_task` (a look at a task ahead), `stages`. May import `train`, `serve`, `envs`,
`models`, `ops` and everything below; `config`, `preset`, `loop_config`, `own_task` and `stages` are
free of torch.
"""
