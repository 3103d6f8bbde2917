from seqtk.ops.tensors import in_blocks

__all__ = ["in_blocks"]
