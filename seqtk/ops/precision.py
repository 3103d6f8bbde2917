from seqtk.ops.tensors import to_autocast_dtype as as_autocast
from seqtk.ops.tensors import to_fp32 as wide

__all__ = ["as_autocast", "wide"]
