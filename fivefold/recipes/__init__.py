"""Whole runs as Python: each module has one function that returns the stages with their configs.

Reading order: `nano` (a complete model in minutes on two CPU cores), `small` (one accelerator),
`glm5` (the published shape); `catalogue` finds them by name. `rl_run` makes the stages of RL on a
task of one's own, with `task_argument`, `start_stage` and `rl_command`. A variant is a function
that changes a copy. May import every room's torch-free configs and stages.
"""
