"""Parameters as data: the graph definition of a network, and a nested dict of arrays beside it.

graphdef, shapes = abstract_module(UNet, config)    # no memory is taken
unet = nnx.merge(graphdef, params)                  # params: arrays in the layout of `shapes`
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx


@functools.cache
def abstract_module(network: type[nnx.Module], config: Any) -> tuple[nnx.GraphDef, dict]:
    """Return a network's graph definition, and its parameters as a nested dict of `jax.ShapeDtypeStruct`."""
    graphdef, state = nnx.split(network(config))
    return graphdef, nnx.to_pure_dict(state)


def flatten(tree: Mapping) -> dict[str, Any]:
    """Return the leaves of a nested dict by dotted path, such as "down_blocks.0.resnets.1.conv1.kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> dict:
    """Invert `flatten`; path components that are numbers become ints, as the keys of `nnx.List` are."""
    key = lambda part: int(part) if part.isdecimal() else part
    return nnx.traversals.unflatten_mapping({tuple(map(key, name.split("."))): x for name, x in leaves.items()})
