"""Sums over the past without a T × T matrix and without a loop over positions: what causal linear attention is made of.

B batch, T length, H heads, R width of the keys, E width of the values, N chunks of C positions.
"""

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.attention.parts.blocks import in_blocks

CHUNK = 64
"""Positions that are compared with each other directly: T C (R + E) time within chunks, T R E / C memory between."""


def causal_sums(query_BHTR: Tensor, key_BHTR: Tensor, value_BHTE: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """y_BHTE: y_t = Σ_{s <= t} (q_t · k_s) v_s, in O(T) time and memory (Katharopoulos et al. 2020, section 3.3).

    Within a chunk by a masked product; across chunks by the running sum of k_s v_sᵀ. In float32 or wider, whatever
    autocast says, because a running sum loses what is small beside it.
    """
    dtype = torch.promote_types(torch.promote_types(query_BHTR.dtype, value_BHTE.dtype), torch.float32)
    with torch.autocast(query_BHTR.device.type, enabled=False):
        length = query_BHTR.shape[2]
        chunk = min(chunk, length)
        query_BHNCR, key_BHNCR, value_BHNCE = (
            in_blocks(x.to(dtype), chunk, dim=2) for x in (query_BHTR, key_BHTR, value_BHTE)
        )
        y_BHNCE: Tensor = (query_BHNCR @ key_BHNCR.transpose(-1, -2)).tril() @ value_BHNCE
        if length > chunk:
            sums_BHNRE = (key_BHNCR.transpose(-1, -2) @ value_BHNCE).cumsum(2)
            y_BHNCE = y_BHNCE + query_BHNCR @ functional.pad(sums_BHNRE[:, :, :-1], (0, 0, 0, 0, 1, 0))
        return y_BHNCE.flatten(2, 3)[:, :, :length]
