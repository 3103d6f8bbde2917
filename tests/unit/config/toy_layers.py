"""A registry with two layers, for tests of configs."""

from dataclasses import dataclass

from seqtk.config.registry import Registry


@dataclass(frozen=True)
class LayerConfig:
    """Base class of the configs of the toy layers."""


layers: Registry[object] = Registry("toy layer", LayerConfig)


@dataclass(frozen=True)
class DotConfig(LayerConfig):
    heads: int = 8
    temperature: float = 1.0


@layers.register("dot", DotConfig)
class Dot: ...


@dataclass(frozen=True)
class DenseConfig(LayerConfig):
    heads: int = 8
    max_length: int = 256


@layers.register("dense", DenseConfig)
class Dense: ...
