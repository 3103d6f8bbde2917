"""Converts text to data-bins and reads them in batches. Independent of models."""
