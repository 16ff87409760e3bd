"""Record the compiled calls that sampling a clip makes, without computing or compiling anything."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from drender.config import RendererConfig
from drender.models.registry import abstract_params
from drender.renderers.base import Renderer
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer
from drender.renderers.stages import Stage
from drender.sharding import SINGLE_DEVICE, DeviceGroup

RENDERERS = {"inverse": InverseRenderer, "forward": ForwardRenderer}


def abstract(config: RendererConfig, dtype: str, group: DeviceGroup = SINGLE_DEVICE) -> Renderer:
    """Return a renderer whose parameters are shapes, on devices that need not be present."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), abstract_params(config))
    return RENDERERS[config.kind](config, shapes, group)


def record(renderer: Renderer, *inputs: Any, **options: Any) -> list["StageCall"]:
    """Return the compiled calls that `renderer(*inputs, **options)` makes."""
    renderer.run_stage = recorder = StageRecorder()
    renderer(*inputs, progress=False, **options)
    return recorder.calls


@dataclass
class StageCall:
    """The calls of a stage with arrays of the same shapes.

    Attributes:
      name, fn: of the stage.
      arguments: shapes of all arguments, the network's parameters first.
      split: how a device group shards rows and frames.
      count: number of calls.
    """

    name: str
    fn: Callable
    arguments: tuple
    split: jax.sharding.NamedSharding | None = None
    count: int = 0

    @property
    def frames(self) -> int:
        """Number of frames, over all rows, of one call."""
        return math.prod(self.arguments[1].shape[:2])


class StageRecorder:
    """A substitute for `Renderer.run_stage` that records shapes and returns zeros: nothing is computed or compiled."""

    def __init__(self):
        self._recorded: dict[tuple, tuple[StageCall, Any]] = {}  # with the shapes of the results

    @property
    def calls(self) -> list[StageCall]:
        """Return one entry per stage and shapes, in the order of first use."""
        return [call for call, _ in self._recorded.values()]

    def __call__(self, stage: Stage, params: Mapping, *arrays: Any, split=None) -> Any:
        shapes = jax.eval_shape(lambda *arguments: arguments, params, *arrays)
        key = stage.name, jax.tree.structure(shapes), tuple((x.shape, x.dtype) for x in jax.tree.leaves(shapes)), split
        if key not in self._recorded:
            call = StageCall(stage.name, stage.fn, shapes, split)
            self._recorded[key] = call, stage.fn.eval_shape(*shapes, split=split)
        call, results = self._recorded[key]
        call.count += 1
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), results)
