"""Files, text, progress, errors and memory: what every package uses and nothing here belongs to."""
