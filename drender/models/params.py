"""TODO."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array


class ParamRngs:
    """A stream of random keys, one per parameter; stands where flax takes `nnx.Rngs`.

    It counts in Python. `nnx.Rngs` counts in a traced variable, and tracing a thousand parameters takes half a minute.
    """

    def __init__(self, key: Array):
        self.key, self.count = key, 0

    def params(self) -> Array:
        self.count += 1
        return jax.random.fold_in(self.key, self.count)


@functools.cache
def abstract_module(network: type[nnx.Module], config: Any) -> tuple[nnx.GraphDef, dict]:
    """The graph definition of a network, and its parameters as a nested dict of shapes, without their memory.

    `nnx.merge(graphdef, params)` makes the network of a nested dict of arrays.
    """
    graphdef, state = nnx.split(nnx.eval_shape(lambda: network(config, rngs=ParamRngs(jax.random.key(0)))))
    return graphdef, nnx.to_pure_dict(state)


def flatten(tree: Mapping) -> dict[str, Any]:
    """A nested dict's leaves by dotted path, in a dict of one level."""
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves: Mapping[str, Any]) -> dict:
    """The nested dict whose leaves have these dotted paths; parts that are numbers become ints."""
    tree: dict = {}
    for name, leaf in leaves.items():
        *parents, last = (int(part) if part.isdecimal() else part for part in name.split("."))
        branch = tree
        for part in parents:
            branch = branch.setdefault(part, {})
        branch[last] = leaf
    return tree
