"""Generates the synthetic data sets of the Long Range Arena."""
