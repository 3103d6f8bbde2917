"""Attention layers. Each family has one file; importing the file registers its layers."""

from seqtk.attention import aft as aft
from seqtk.attention import bigbird as bigbird
from seqtk.attention import convluna as convluna
from seqtk.attention import convolution as convolution
from seqtk.attention import cosformer as cosformer
from seqtk.attention import feedforward_kernel as feedforward_kernel
from seqtk.attention import fnet as fnet
from seqtk.attention import gmlp as gmlp
from seqtk.attention import linear as linear
from seqtk.attention import linformer as linformer
from seqtk.attention import luna as luna
from seqtk.attention import mega as mega
from seqtk.attention import mixture as mixture
from seqtk.attention import nystrom as nystrom
from seqtk.attention import performer as performer
from seqtk.attention import pooling as pooling
from seqtk.attention import reformer as reformer
from seqtk.attention import simpletron as simpletron
from seqtk.attention import sinkhorn as sinkhorn
from seqtk.attention import softmax as softmax
from seqtk.attention import sparse as sparse
from seqtk.attention import synthesizer as synthesizer
from seqtk.attention import transformer_xl as transformer_xl
from seqtk.attention import windows as windows
from seqtk.attention.base import (
    Attention,
    AttentionConfig,
    Role,
    Scope,
    State,
    StepState,
    attentions,
)
from seqtk.attention.headwise import HeadwiseAttention
from seqtk.attention.qkv import HeadedAttention, QKVAttention, QKVConfig

__all__ = [
    "Attention",
    "AttentionConfig",
    "HeadedAttention",
    "HeadwiseAttention",
    "QKVAttention",
    "QKVConfig",
    "Role",
    "Scope",
    "State",
    "StepState",
    "attentions",
]
