"""Whole runs as Python: each module has one function that returns the stages with their configs.

Reading order: `nano` (a complete model in minutes on two CPU cores), `small` (one accelerator),
`glm5` (the published shape); `catalogue` finds them by name. A variant is a function that changes a
copy. May import every room's torch-free configs and stages.
"""
