"""LPIPS, the learned perceptual distance of Zhang et al. 2018 ("The Unreasonable Effectiveness of Deep Features as a
Perceptual Metric"), version 0.1: features of AlexNet or VGG16, compared by learned weights.

The weights are not ours to give: a folder holds torchvision's file of the network and the `lpips` package's file of
the weights of the comparison.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from drender.checkpoints import torch_files
from drender.errors import InputError

# What the networks were trained on, for images in [-1, 1].
MEAN, DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Conv(NamedTuple):
    """A convolution, followed by a ReLU, of a network in torchvision."""

    index: int  # in its `features`
    stride: int = 1
    padding: int = 1


@dataclass(frozen=True)
class Network:
    """The convolutions of a network, in blocks whose results are compared."""

    name: str
    trunk: str  # pattern of torchvision's file
    heads: str  # the lpips package's file
    blocks: tuple[tuple[Conv, ...], ...]
    pool: int  # window of the max-pooling with stride 2 ...
    pooled: tuple[int, ...]  # ... that comes before these blocks
    smallest: int  # side of an image that leaves something to compare in the last block


ALEX = Network(
    "alex",
    "alexnet-*.pth",
    "alex.pth",
    ((Conv(0, 4, 2),), (Conv(3, 1, 2),), (Conv(6),), (Conv(8),), (Conv(10),)),
    pool=3,
    pooled=(1, 2),
    smallest=31,
)
VGG = Network(
    "vgg",
    "vgg16-*.pth",
    "vgg.pth",
    tuple(tuple(map(Conv, block)) for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))),
    pool=2,
    pooled=(1, 2, 3, 4),
    smallest=16,
)


@dataclass(frozen=True)
class LPIPS:
    """The distance, with the weights of one network; `load` reads them."""

    network: Network
    kernels: tuple[tuple[tuple[jax.Array, jax.Array], ...], ...]  # of each block's convolutions: `h w i o` and bias
    heads: tuple[jax.Array, ...]  # the weight of each channel of a block's result

    @classmethod
    def load(cls, folder: str | Path) -> "LPIPS":
        """The distance whose weights lie in `folder`: AlexNet's (`alexnet-*.pth`, `alex.pth`), which its authors report
        by default, or else VGG16's (`vgg16-*.pth`, `vgg.pth`). torch is needed to read them.

        Raises:
          InputError: neither is there, or a file is damaged or of something else.
        """
        folder = Path(folder)
        for network in (ALEX, VGG):
            trunks = sorted(folder.glob(network.trunk))
            if trunks and (folder / network.heads).is_file():
                return cls(network, *_weights(network, trunks[0], folder / network.heads))
        wanted = " or ".join(f"{network.trunk} with {network.heads}" for network in (ALEX, VGG))
        raise InputError(f"{folder}: no weights of LPIPS; expected {wanted}, from torchvision and the lpips package")

    def __call__(
        self, first: Float[np.ndarray, "*b h w 3"], second: Float[np.ndarray, "*b h w 3"]
    ) -> Float[np.ndarray, "*b"]:
        """The distance of images in [0, 1]; 0 for equal ones, and about 1 for very different ones.

        Raises:
          InputError: images too small for the network.
        """
        *batch, h, w, _ = first.shape
        if min(h, w) < (smallest := self.network.smallest):
            raise InputError(
                f"images of {w}x{h} pixels are too small for LPIPS ({self.network.name}): {smallest} or more"
            )
        distances = []
        for pair in zip(first.reshape(-1, h, w, 3), second.reshape(-1, h, w, 3), strict=True):
            distances.append(_distance(self.network, self.kernels, self.heads, jnp.asarray(pair, jnp.float32)))
        return np.array(distances, np.float64).reshape(batch)


def _weights(network: Network, trunk: Path, heads: Path) -> tuple[tuple, tuple]:
    """Kernels and heads as `LPIPS` holds them."""
    tensors, kernels, linear = torch_files.read_pickle(trunk), [], []
    head_tensors, channels = torch_files.read_pickle(heads), 3
    for number, block in enumerate(network.blocks):
        convs = []
        for conv in block:
            name = f"features.{conv.index}"
            kernel = _read(trunk, tensors, f"{name}.weight", (None, channels, None, None))
            channels = kernel.shape[0]
            bias = _read(trunk, tensors, f"{name}.bias", (channels,))
            convs.append((jnp.asarray(rearrange(kernel, "o i h w -> h w i o")), jnp.asarray(bias)))
        kernels.append(tuple(convs))
        head = _read(heads, head_tensors, f"lin{number}.model.1.weight", (1, channels, 1, 1))
        linear.append(jnp.asarray(head.reshape(channels)))
    return tuple(kernels), tuple(linear)


def _read(file: Path, tensors: dict[str, torch_files.Tensor], name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """A tensor in float32. None in `shape` is any length."""
    found = tensors[name].shape if name in tensors else ()
    if len(found) != len(shape) or any(b not in (None, a) for a, b in zip(found, shape, strict=True)):
        wanted = "x".join("?" if length is None else str(length) for length in shape)
        has = "x".join(map(str, found)) or "missing"
        raise InputError(f"{file}: {name} is {has}, where LPIPS needs {wanted}; download the file again")
    return tensors[name].read().astype(np.float32)


@partial(jax.jit, static_argnames="network")
def _distance(network: Network, kernels: tuple, heads: tuple, pair: Float[Array, "2 h w 3"]) -> Float[Array, ""]:
    x = (pair * 2 - 1 - jnp.array(MEAN)) / jnp.array(DEVIATION)
    distance = jnp.zeros(())
    for number, (block, weights, head) in enumerate(zip(network.blocks, kernels, heads, strict=True)):
        if number in network.pooled:
            x = nnx.max_pool(x, (network.pool, network.pool), strides=(2, 2))
        for conv, (kernel, bias) in zip(block, weights, strict=True):
            x = jax.lax.conv_general_dilated(
                x,
                kernel,
                (conv.stride, conv.stride),
                [(conv.padding, conv.padding)] * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                precision=jax.lax.Precision.HIGHEST,  # the metric is that of full float32 on every device
            )
            x = jax.nn.relu(x + bias)
        unit = x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10)
        distance += jnp.mean(jnp.square(unit[0] - unit[1]) @ head)
    return distance
