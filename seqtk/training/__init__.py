"""The training loop, which all tasks share, and the state of a run."""
