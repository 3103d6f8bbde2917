"""Whole networks made from modules and attention layers."""
