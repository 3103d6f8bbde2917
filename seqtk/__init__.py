"""Sequence-to-sequence and language-model research with swappable attention layers."""

__version__ = "0.1.0"
