"""Damped exponential moving averages: y_t = Σ_n out_n h_nt, h_nt = in_n x_t + decay_n h_n,t-1 in each channel.

This is the core of Mega's moving average (Ma et al. 2022, arXiv 2209.10655, section 3.1).

Where it runs: in chunks on every device. Within a chunk it is a product with the weights of all distances. The
averages at the end of a chunk are passed to the next chunk. It takes O(T D (C + N)) time and O(T D (1 + N / C)) memory.
Unlike with a Fourier transform, rounding errors of later positions never reach earlier ones.

B batch, T length, D width, N averages per channel, M chunks of C positions (also as S).
"""

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.ops.dispatch import naive_mode

CHUNK = 32
"""The number of positions in a chunk."""


def naive(x_BTD: Tensor, log_decay_DN: Tensor, in_DN: Tensor, out_DN: Tensor) -> Tensor:
    """Computes y_BTD with a T × T matrix of weights per channel: Σ_n out_n in_n decay_n^(t - s) for s <= t."""
    place_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
    distance_TS = (place_T[:, None] - place_T).clamp(min=0)
    decay_DNTS = (log_decay_DN[..., None, None] * distance_TS).exp()
    weight_DTS = torch.einsum("dn,dnts->dts", in_DN * out_DN, decay_DNTS).tril()
    return torch.einsum("dts,bsd->btd", weight_DTS, x_BTD)


def damped_average(x_BTD: Tensor, log_decay_DN: Tensor, in_DN: Tensor, out_DN: Tensor) -> Tensor:
    """Returns the moving averages y_BTD. `log_decay_DN` is the logarithm of decay_n.

    The inputs must be in float32 or wider, and autocast must be off.
    """
    if naive_mode():
        return naive(x_BTD, log_decay_DN, in_DN, out_DN)
    length = x_BTD.shape[1]
    size = min(CHUNK, length)
    x_BMSD = functional.pad(x_BTD, (0, 0, 0, -length % size)).reshape(len(x_BTD), -1, size, x_BTD.shape[2])
    place_C = torch.arange(size, device=x_BTD.device)
    decay_DNC = (log_decay_DN[..., None] * place_C).exp()
    weight_DC = torch.einsum("dn,dnc->dc", in_DN * out_DN, decay_DNC)
    weight_DTS = weight_DC[:, (place_C[:, None] - place_C).clamp(min=0)].tril()
    y_BMTD = torch.einsum("dts,bmsd->bmtd", weight_DTS, x_BMSD)
    if length > size:
        left_BMDN = torch.einsum("dns,bmsd->bmdn", in_DN[..., None] * decay_DNC.flip(-1), x_BMSD[:, :-1])
        before_BMDN = functional.pad(_across_chunks(left_BMDN, log_decay_DN * size), (0, 0, 0, 0, 1, 0))
        read_DNT = (out_DN * log_decay_DN.exp())[..., None] * decay_DNC
        y_BMTD = y_BMTD + torch.einsum("dnt,bmdn->bmtd", read_DNT, before_BMDN)
    return y_BMTD.flatten(1, 2)[:, :length]


def _across_chunks(left_BMDN: Tensor, log_decay_DN: Tensor) -> Tensor:
    """Returns the states h_m = left_m + decay · h_{m-1} at the ends of M chunks, computed in log2 M rounds.

    Each round doubles the distance over which states are combined.
    """
    reach = 1
    while reach < left_BMDN.shape[1]:
        earlier_BMDN = functional.pad(left_BMDN[:, :-reach], (0, 0, 0, 0, reach, 0))
        left_BMDN = left_BMDN + (log_decay_DN * reach).exp() * earlier_BMDN
        reach *= 2
    return left_BMDN
