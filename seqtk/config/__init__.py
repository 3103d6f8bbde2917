"""Registries, and typed configs as plain trees."""
