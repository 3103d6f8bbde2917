"""The training loop of all tasks, and the engines, logs, validation, checks and error handling of a run."""
