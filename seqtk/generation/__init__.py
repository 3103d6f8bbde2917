"""Beam search, sampling, and scoring of given text, with any model that can decode step by step."""
