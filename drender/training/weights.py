"""The model of a run and the weights that it begins with: from checkpoints, from other runs, or random.

`init_from` names a checkpoint or a run, for all components or per component (`COMPONENTS`). A run stands for the EMA of
its last checkpoint; components that it did not train come from its own `init_from`.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np

from drender.checkpoints import orbax
from drender.checkpoints.cache import resolve
from drender.config import RendererConfig, check_parts
from drender.data.latent_cache import fingerprint
from drender.errors import InputError, naming, unknown_name_error
from drender.fields import from_dict, to_dict
from drender.files import expand_home
from drender.models import lora
from drender.models.params import abstract_module, flatten, unflatten
from drender.models.registry import network_of
from drender.training import init, perceptual, run_dir, run_record
from drender.training.config import TrainConfig
from drender.training.losses import OBJECTIVES

# Components of a sampling checkpoint, and those that only training needs.
COMPONENTS = (*orbax.COMPONENTS, "nrm_encoder", "env_decoder")

Log = Callable[[str], None]
Arrays = Mapping[str, jax.Array | np.ndarray | jax.ShapeDtypeStruct]  # by dotted name


def resolve_weights(config: TrainConfig) -> "Weights":
    """Open the checkpoints and runs of `init_from`, and derive the model that is trained.

    The model is that of the UNet's source (Stable Video Diffusion's without one), changed by `model`, and made to the
    kind that the objective needs.

    Raises:
      InputError: `init_from` cannot be opened or lacks a component, or the model's parts do not fit together.
    """
    sources = _open_sources(config.init_from)
    if "lora" in sources and config.lora is None:
        problem = f"init_from {sources['lora'].path}: its LoRA factors are left out"
        warnings.warn(f"{problem}; set lora.rank to theirs to keep them", stacklevel=2)
    return Weights(config, sources, _renderer_config(config, sources))


@dataclass(frozen=True)
class Weights:
    """The resolved weights of a run."""

    config: TrainConfig
    sources: Mapping[str, "WeightSource"]  # of every component that has one; the others are randomly initialized
    model: RendererConfig  # the renderer that is trained

    @property
    def components(self) -> tuple[str, ...]:
        """The names of all components that the run computes with, those that train by default first."""
        return (*self._trained, *OBJECTIVES[self.config.objective].frozen)

    @property
    def _trained(self) -> tuple[str, ...]:
        return (*OBJECTIVES[self.config.objective].trained, *(("lora",) if self.config.lora else ()))

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of parameters that train."""
        return self.config.trainable or self._trained

    @functools.cached_property
    def only_lora_trains(self) -> bool:
        """Whether nothing but the LoRA factors trains; they then act on all rows."""
        trained = {name for name in self.components if any(map(self.trains, self.shapes(name)))}
        return trained == {"lora"}

    def shapes(self, name: str) -> dict[str, Any]:
        """Return the shapes of a component's parameters by dotted name, such as "unet.conv_in.kernel"."""
        params = self._fresh_lora() if name == "lora" else abstract_module(*network_of(self.model, name))[1]
        return flatten({name: params})

    def trains(self, parameter: str) -> bool:
        """Whether a parameter trains."""
        return any(_matches(parameter, pattern) for pattern in self.patterns)

    def component(self, name: str, log: Log = lambda line: None) -> dict:
        """Return a component before training as a nested dict: from its source, adapted to the model, or random."""
        source = self.sources.get(name)
        if source is None:
            log(f"{name}: randomly initialized")
            if name == "lora":
                return self._fresh_lora()
            return init.init_params(*network_of(self.model, name), self.config.seed)
        stored, where = source.load(name), f"init_from {source.path}: {name}"
        if name == "lora":
            return _require_same_shapes(self._fresh_lora(), stored, where)
        params, report = init.adapt_pretrained(*network_of(self.model, name), stored, self.config.seed, where)
        for line in report:
            log(line)
        return params

    def split(
        self, needs_vae: bool, resumed: bool, log: Log = lambda line: None
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return (trained float32, frozen compute-dtype) parameters by dotted name.

        Args:
          needs_vae: include a frozen VAE; training on cached latents does without.
          resumed: the trained parameters will come from the run's checkpoint, so return shapes instead.
        Raises:
          InputError: a pattern of `trainable` without a match, trained parameters that no row reaches, a frozen
            component without a source, or a source that does not fit.
        """
        objective = OBJECTIVES[self.config.objective]
        names = [name for name in self.components if needs_vae or name != "vae" or name in objective.trained]
        shapes = {name: self.shapes(name) for name in names}
        for pattern in self.patterns:
            if not any(_matches(key, pattern) for leaves in shapes.values() for key in leaves):
                raise InputError(f"trainable: {pattern!r} matches no parameter; names begin with {', '.join(names)}")
        trained = {key: leaf for leaves in shapes.values() for key, leaf in leaves.items() if self.trains(key)}
        has_rows = self.only_lora_trains or any(source.real for source in self.config.data.sources)
        if any(key.startswith("lora.") for key in trained) and not has_rows:
            problem = "trained with others, the factors see only sources with `real: true`, but data.sources has none"
            remedy = "mark one as real, train the factors alone (trainable='[lora]'), or remove lora"
            raise InputError(f"lora: {problem}; {remedy}")
        frozen = {}
        for name in names:
            trained_keys = shapes[name].keys() & trained.keys()
            if resumed and len(trained_keys) == len(shapes[name]):
                continue
            if not trained_keys and name not in self.sources:
                problem = f"objective {self.config.objective!r} needs a trained {name}, which stays frozen"
                raise InputError(f"{problem}; give init_from.{name}")
            leaves = flatten({name: self.component(name, log)})
            if not resumed:
                trained |= {key: np.asarray(leaves[key], np.float32) for key in trained_keys}
            frozen |= {key: np.asarray(x, self.config.dtype) for key, x in leaves.items() if key not in trained_keys}
        if self.config.loss.perceptual:
            frozen |= flatten({"lpips": perceptual.frozen_params()})
        return trained, frozen

    def check_reach(self, unreached: Collection[str]) -> None:
        """Raise InputError for a pattern of `trainable` that matches nothing but parameters without a gradient."""
        for pattern in self.patterns:
            matched = {key for name in self.components for key in self.shapes(name) if _matches(key, pattern)}
            if matched and matched <= set(unreached):
                problem = f"objective {self.config.objective!r} has no gradient by {pattern!r}"
                remedy = "remove it (layers over time need data.image_fraction below 1)"
                raise InputError(f"trainable: {problem}; {remedy}")

    def check_latents(self, made_by: str) -> None:
        """Raise InputError unless the run can train on latents of the VAE with the fingerprint `made_by`."""
        if self.config.loss.condition_noise is not None:
            raise InputError("loss.condition_noise is added to pixels, but data.sources holds latents; set it to null")
        source = self.sources.get("vae")
        if source is None:
            raise InputError("init_from has no vae; name the VAE that made the cached latents as init_from.vae")
        found = fingerprint(source.load("vae"))
        if found != made_by:
            problem = f"has the fingerprint {found}, but the cached latents were made with {made_by}"
            raise InputError(f"init_from.vae {source.path}: {problem}; use that VAE, or encode the clips again")

    def _fresh_lora(self) -> dict:
        unet, config = abstract_module(*network_of(self.model, "unet"))[1], self.config.lora
        return lora.init(unet, config.rank, config.targets, self.config.seed, config.alpha)


def _matches(parameter: str, pattern: str) -> bool:
    """Whether a pattern matches a dotted name, or one of the modules that it is in."""
    return fnmatchcase(parameter, pattern) or fnmatchcase(parameter, f"{pattern}.*")


def _require_same_shapes(own: dict, stored: dict, where: str) -> dict:
    """Return the stored factors if they have the shapes of our own, and each alpha its value."""
    needed, given = ({name: x.shape or float(x) for name, x in flatten(tree).items()} for tree in (own, stored))
    for name in needed | given:
        if given.get(name) != needed.get(name):
            found, expected = given.get(name, "missing"), needed.get(name, "no such factor")
            remedy = "set its rank, alpha and targets to the source's"
            raise InputError(f"{where}: {name} is {found}, but `lora` needs {expected}; {remedy}")
    return stored


# --- sources ---------------------------------------------------------------------------------------------------------


class WeightSource:
    """A checkpoint or a run to take components from.

    Attributes:
      path: its folder.
      step: of a run's checkpoint; None: the last.
      config: its renderer.
      components: names of the components that it holds.
    """

    def __init__(self, path: str, step: int | None = None):
        self.path, self.step, self.run = path, step, None
        if run_record.is_run(path):
            run, self.config = run_record.read_run(path)
            # The sources of components that the run did not train are opened when these are loaded.
            self.run = Weights(run, {}, self.config)
            self.components = self.run.components
        else:
            self.path = resolve(path)
            self.config = orbax.load_config(self.path)
            self.components = tuple(orbax.components(self.path))

    def load(self, name: str) -> dict:
        """Return a component as a nested dict of arrays."""
        if self.run is None:
            return orbax.load(self.path, name)
        leaves = run_dir.load_ema(self.path, name, self.step)
        if len(leaves) < len(self.run.shapes(name)):
            with naming(expand_home(self.path) / run_record.RECORD):  # its init_from may have moved since
                sources = _open_sources(self.run.config.init_from)
            leaves = flatten({name: dataclasses.replace(self.run, sources=sources).component(name)}) | leaves
        return unflatten(leaves)[name]


def _open_sources(init_from: str | Mapping[str, str] | None) -> dict[str, WeightSource]:
    """Return the source of every component that has one; every folder is opened once."""
    if init_from is None:
        return {}
    if isinstance(init_from, str):
        source = _open_source("init_from", init_from)
        return dict.fromkeys(source.components, source)
    for name in init_from:
        if name not in COMPONENTS:
            raise unknown_name_error("component of init_from", name, COMPONENTS)
    opened = {path: _open_source(f"init_from.{name}", path) for name, path in reversed(init_from.items())}
    for name, path in init_from.items():
        if name not in opened[path].components:
            raise InputError(f"init_from.{name} {path}: has no {name}; it has {', '.join(opened[path].components)}")
    return {name: opened[path] for name, path in init_from.items()}


def _open_source(option: str, path: str) -> WeightSource:
    with naming(option):
        return WeightSource(path)


# --- the model -------------------------------------------------------------------------------------------------------


def _renderer_config(config: TrainConfig, sources: Mapping[str, WeightSource]) -> RendererConfig:
    """Return the model of a run, see `resolve_weights`."""
    given = {name: getattr(sources[name].config, name) for name in ("vae", "env_encoder") if name in sources}
    base = sources["unet"].config if "unet" in sources else RendererConfig("svd")
    model = _merge_config(dataclasses.replace(base, **given), config.model)
    kind = OBJECTIVES[config.objective].kind
    if kind in ("inverse", "forward") and model.kind != kind:
        # The kind's changes follow from the sizes in `model`, and `model` overrides them.
        model = _merge_config(dataclasses.replace(init.renderer_config(kind, model), **given), config.model)
    if config.objective in ("inverse", "forward"):
        with naming("model"):
            check_parts(model)
    return dataclasses.replace(model, deterministic=config.loss.one_step)


def _merge_config(base: RendererConfig, changes: Mapping[str, Any]) -> RendererConfig:
    return from_dict(RendererConfig, _merge(to_dict(base), changes), "model")


def _merge(values: dict, changes: Mapping[str, Any]) -> dict:
    """Return nested values with changes."""
    merged = dict(values)
    for key, value in changes.items():
        is_branch = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if is_branch else value
    return merged
