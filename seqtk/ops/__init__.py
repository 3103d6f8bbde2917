"""What layers compute with, as functions: one file an operation, a readable `naive` form beside the fast one.

`seqtk.ops.dispatch` says which of the two runs. Nothing here knows attention layers, modules or configs.
"""
