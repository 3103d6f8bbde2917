"""Decoding (beam search and sampling) with any model that has a step form, and scoring of given text."""
