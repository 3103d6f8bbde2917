"""Model files, and the state of a run on disk."""
