"""Utilities that every package uses: files, text, progress, errors and memory."""
