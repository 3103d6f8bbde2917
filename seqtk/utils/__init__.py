"""Utilities for all packages: files, text, progress, errors and memory."""
