"""Search over anything that can step, and scoring of given text."""
