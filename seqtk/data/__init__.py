"""Converts text to data-bins, and reads data-bins in batches. Independent of models."""
