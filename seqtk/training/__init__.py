"""The training loop of all tasks, and what belongs to a run: engines, logs, validation, checks and recovery."""
