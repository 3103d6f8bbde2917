"""Imports fairseq's lightconv models: Transformers with convolutions in place of self-attention."""

from seqtk.attention.convolution import DynamicConvConfig, LightweightConvConfig
from seqtk.interop.fairseq_options import Options
from seqtk.models.stacks import Pattern
from seqtk.utils.errors import UserError

TYPES: dict[str, type[DynamicConvConfig | LightweightConvConfig]] = {
    "dynamic": DynamicConvConfig,
    "lightweight": LightweightConvConfig,
}


def is_lightconv(options: Options) -> bool:
    """Returns True if the options are from a lightconv model: they include the type of convolution."""
    return any(options.get(f"{stack}_conv_type", None) is not None for stack in ("encoder", "decoder"))


def convolutions(options: Options, *, stack: str) -> Pattern:
    """Returns the config of the convolution in each block of `stack`, encoder or decoder."""
    config_type = options.known(f"{stack}_conv_type", TYPES, "None")
    width = options.size(f"{stack}_embed_dim")
    if options.get(f"{stack}_conv_dim", width) != width:
        raise UserError(
            f"{options.where} has {stack}_conv_dim={options.size(f'{stack}_conv_dim')}, but {stack}_embed_dim={width}.",
            "seqtk's convolutions have the width of the model, so this model cannot be imported.",
        )
    return tuple(
        config_type(
            heads=options.size(f"{stack}_attention_heads"),
            kernel_size=size,
            glu=bool(options.get(f"{stack}_glu", True)),
            weight_softmax=bool(options.get("weight_softmax", True)),
            dropout=options.number("weight_dropout", 0.0),
            input_dropout=options.number("input_dropout", 0.0),
        )
        for size in _kernel_sizes(options, stack=stack)
    )


def _kernel_sizes(options: Options, *, stack: str) -> list[int]:
    """Returns one kernel size for each block. A single size in fairseq's option applies to all blocks."""
    name, layers = f"{stack}_kernel_size_list", options.size(f"{stack}_layers")
    sizes = options.get(name, None)
    if not isinstance(sizes, list) or not all(type(size) is int and size > 0 for size in sizes):
        raise UserError(f"{options.where}: the option '{name}' is {sizes!r}, not a list of sizes.")
    if len(sizes) not in (1, layers):
        raise UserError(f"{options.where}: '{name}' has {len(sizes)} sizes for {layers} layers.")
    return sizes * layers if len(sizes) == 1 else sizes
