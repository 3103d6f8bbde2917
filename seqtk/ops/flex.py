from seqtk.ops.dot_product import MIN_FLEX_WIDTH as LEAST_HEAD_DIM
from seqtk.ops.dot_product import alibi_score
from seqtk.ops.dot_product import attend_flex as flex_attend
from seqtk.ops.dot_product import flex_mask as seen_by

__all__ = ["LEAST_HEAD_DIM", "alibi_score", "flex_attend", "seen_by"]
