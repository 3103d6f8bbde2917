"""The command-line programs of seqtk. Only this package imports Hydra."""
