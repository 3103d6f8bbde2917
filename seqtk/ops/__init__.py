"""The operations that layers use, as functions. Each file has one operation in two forms: `naive` (readable) and fast.

`seqtk.ops.dispatch` chooses which of the two runs. This package does not depend on attention layers, modules or
configs.
"""
