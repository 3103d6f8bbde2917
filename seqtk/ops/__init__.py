"""What attention layers compute with, as functions."""
