"""Reinforcement learning: from groups of samples to a loss a token.

Reading order: `config`, `preset` (published algorithms by name), `sample`, `advantage` (groups to
advantages), `layout` and `pack` (samples to rows), `streams` (what a loss reads), the losses
`icepop`, `double_sided`, `surrogate` (PPO, DAPO, Dr.GRPO), `truncated`, `gspo`, `cispo`, then
`distillation` (a teacher's advantages), `algorithm` (config to function), `reduction` (the one
denominator rule), `head` (a loss through the output head), `mismatch` (trainer against engine);
then the loop: `rollout_config`, `loop_config`, `prompt`, `reason` (why answers could not be
judged), `rollout`, `retry`, `server_weights` and `server_completer` (a server in its place),
`collect`, `forward`, `learner`, `loop`, `progress`, `examine`, `dump`, `shown` (rollouts token by
token), `page`; and the stages `reinforce`, `teacher_config`, `teacher`, `distil`, `task_prompt`,
`heldout` (problems that do not train), `own_task` (a look at a task ahead), `stages`. How often a
checkpoint solves each problem: `attempt_config`, `attempt_page`, `attempt`, `solve_count`,
`attempt_stage`. May import `train`, `serve`, `envs`, `models`, `ops` and everything below; the
configs, `preset`, `heldout`, `own_task`, `attempt_stage` and `stages` are free of torch.
"""
