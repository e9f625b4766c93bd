"""Cost models and schedules on paper."""
