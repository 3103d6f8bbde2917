"""The recipes, as package data."""
