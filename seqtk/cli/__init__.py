"""The commands; the only place that imports Hydra."""
