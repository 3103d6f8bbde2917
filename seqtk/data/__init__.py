"""Text to token files to batches; knows no model."""
