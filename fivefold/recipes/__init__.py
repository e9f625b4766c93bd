"""Whole runs as Python: each module has one function that returns the stages with their configs.

Reading order: `nano` (a complete model in minutes on two CPU cores), `small` (one accelerator),
`glm5` (the published shape); `catalogue` finds them by name. `rl_run` makes the stages of RL on a
task of one's own, with `task_argument`, `task_length`, `start_stage` and `rl_command`;
`attempt_run`, `attempt_learn` and `attempt_command` those of counting how often it is solved;
`own_benchmark` gives the problems that stages examine on, which no corpus may hold. A variant is a
function that changes a copy. May import every room's torch-free configs and stages.
"""
