"""Registries of classes by name, and conversion of config dataclasses to and from plain dicts."""
