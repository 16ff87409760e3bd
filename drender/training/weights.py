"""Where a run's model and weights come from: checkpoints, other runs, or random numbers.

`start` names a checkpoint or a run, for all components or per component (`COMPONENTS`). A run counts as the averaged
weights of its last checkpoint, with what it did not train from its own start.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drender.checkpoints import orbax
from drender.checkpoints.fingerprint import fingerprint
from drender.config import RendererConfig, from_dict, to_dict
from drender.errors import InputError, unknown_name_error
from drender.models import lora
from drender.models.params import abstract_module, flatten, unflatten
from drender.models.registry import network_of
from drender.training import init, run_dir
from drender.training.config import TrainConfig
from drender.training.losses import OBJECTIVES

# What a sampling checkpoint can hold; the rest is only needed to train.
KEPT = orbax.COMPONENTS
COMPONENTS = (*KEPT, "nrm_encoder", "env_decoder")
Log = Callable[[str], None]


class WeightSource:
    """A checkpoint or a run to take components from.

    Attributes:
      config: of its renderer.
      components: the names of what it holds.
    """

    def __init__(self, path: str):
        self.path = path
        self.train = None
        if run_dir.is_run(path):
            self.train, self.config = run_dir.read(path)
            self.components = components(self.train)
        else:
            self.config = orbax.load_config(path)
            self.components = tuple(orbax.components(path))

    def load(self, name: str) -> dict:
        """One component as a nested dict of arrays."""
        if self.train is None:
            return orbax.load(self.path, name)
        trained = run_dir.load_average(self.path, name)
        whole = abstract(self.train, self.config, name)
        if len(trained) < len(whole):
            trained = flatten({name: component(self.train, self.config, name)}) | trained
        return unflatten(trained)[name]


def resolve_sources(config: TrainConfig) -> dict[str, WeightSource]:
    """The origin of every component that has one."""
    if config.start is None:
        return {}
    if isinstance(config.start, str):
        origin = _origin("start", config.start)
        return dict.fromkeys(origin.components, origin)
    origins = {}
    for name, path in config.start.items():
        if name not in COMPONENTS:
            raise unknown_name_error("component of start", name, COMPONENTS)
        origins[name] = _origin(f"start.{name}", path)
        if name not in origins[name].components:
            raise InputError(f"start.{name} {path}: has no {name}; it holds {', '.join(origins[name].components)}")
    return origins


def _origin(option: str, path: str) -> WeightSource:
    try:
        return WeightSource(path)
    except InputError as error:
        raise InputError(f"{option}: {error}") from None


def renderer_config(config: TrainConfig) -> RendererConfig:
    """The model that a run trains: its start's (else Stable Video Diffusion's), changed by `model`, made to the kind
    that the objective asks for.
    """
    origins = resolve_sources(config)
    given = {name: getattr(origin.config, name) for name, origin in origins.items() if name in ("vae", "env_encoder")}
    base = origins["unet"].config if "unet" in origins else RendererConfig("svd")
    base = _changed(dataclasses.replace(base, **given), config.model)
    kind = OBJECTIVES[config.objective].kind
    if kind in ("inverse", "forward") and base.kind != kind:
        # What the kind implies follows from the changed sizes, unless it is given itself.
        base = _changed(dataclasses.replace(init.renderer_config(kind, base), **given), config.model)
    if config.objective in ("inverse", "forward"):
        _check_widths(base)
    return dataclasses.replace(base, deterministic=config.loss.deterministic)


def _check_widths(model: RendererConfig) -> None:
    """InputError where the UNet's widths are not those of what it is fed."""
    images = 1 + (len(model.conditions) if model.kind == "forward" else 1)
    if model.unet.in_channels != images * model.vae.latent_channels:
        raise InputError(
            f"model.unet.in_channels is {model.unet.in_channels}, but {images} latents of {model.vae.latent_channels} "
            f"channels enter; set it to {images * model.vae.latent_channels}"
        )
    if model.kind == "forward" and model.unet.cross_attention_dim != model.env_encoder.channels:
        raise InputError(
            f"model.unet.cross_attention_dim is {list(model.unet.cross_attention_dim)}, but the environment encoder "
            f"has channels {list(model.env_encoder.channels)}; make them the same"
        )


def _changed(base: RendererConfig, changes: Mapping[str, Any]) -> RendererConfig:
    return from_dict(RendererConfig, _merged(to_dict(base), changes), "model")


def _merged(values: dict, changes: Mapping[str, Any]) -> dict:
    merged = dict(values)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


# --- weights ---------------------------------------------------------------------------------------------------------


def components(config: TrainConfig) -> tuple[str, ...]:
    """What a run's model is made of."""
    objective = OBJECTIVES[config.objective]
    return (*objective.trained, *(("lora",) if config.lora else ()), *objective.frozen)


def abstract(config: TrainConfig, model: RendererConfig, name: str) -> dict[str, Any]:
    """The shapes of a component's parameters by dotted name, which begins with the component's."""
    if name == "lora":
        return flatten({name: _fresh_factors(config, model)})
    return flatten({name: abstract_module(*network_of(model, name))[1]})


def component(config: TrainConfig, model: RendererConfig, name: str, log: Log = lambda line: None) -> dict:
    """A component before training, as a nested dict of arrays: from its start, fitted to the model, or random."""
    origin = resolve_sources(config).get(name)
    if origin is None:
        log(f"{name}: begins at random")
    if name == "lora":
        fresh = _fresh_factors(config, model)
        return fresh if origin is None else _same_shapes(fresh, origin.load(name), f"start {origin.path}: lora")
    if origin is None:
        return init.init_params(*network_of(model, name), config.seed)
    fitted, report = init.adapt_pretrained(
        *network_of(model, name), origin.load(name), config.seed, f"start {origin.path}: {name}"
    )
    for line in report:
        log(line)
    return fitted


def _fresh_factors(config: TrainConfig, model: RendererConfig) -> dict:
    unet = abstract_module(*network_of(model, "unet"))[1]
    return lora.init(unet, config.lora.rank, config.lora.targets, config.seed, config.lora.alpha)


def _same_shapes(wanted: dict, found: dict, where: str) -> dict:
    shapes, stored = ({name: x.shape for name, x in flatten(tree).items()} for tree in (wanted, found))
    for name in shapes | stored:
        if shapes.get(name) != stored.get(name):
            raise InputError(
                f"{where}: {name} is {stored.get(name, 'missing')}, but `lora` asks for {shapes.get(name, 'none')}; "
                "set its rank and targets to those of the start"
            )
    return found


def weights(
    config: TrainConfig, model: RendererConfig, needs_vae: bool, resumed: bool, log: Log = lambda line: None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The weights that learn, float32, and those that do not, in the dtype that is computed in, by dotted name.

    Args:
      needs_vae: with a frozen VAE; cached latents do without.
      resumed: the learning ones will come from the run's checkpoint; their shapes are enough.
    Raises:
      InputError: a pattern of `trainable` that matches nothing, a start that does not fit, or none where one must be.
    """
    objective = OBJECTIVES[config.objective]
    names = [name for name in components(config) if needs_vae or name != "vae" or name in objective.trained]
    patterns = config.trainable or (*objective.trained, *(("lora",) if config.lora else ()))
    shapes = {name: abstract(config, model, name) for name in names}
    for pattern in patterns:
        if not any(_matches(key, pattern) for leaves in shapes.values() for key in leaves):
            raise InputError(f"trainable {pattern!r} matches no parameter; names begin with {', '.join(names)}")
    trained, frozen = {}, {}
    for name in names:
        learns = {key for key in shapes[name] if any(_matches(key, pattern) for pattern in patterns)}
        trained |= {key: leaf for key, leaf in shapes[name].items() if key in learns}
        if resumed and len(learns) == len(shapes[name]):
            continue
        if not learns and name not in resolve_sources(config):
            raise InputError(
                f"objective {config.objective!r} computes with a {name} that does not learn; give start.{name}"
            )
        leaves = flatten({name: component(config, model, name, log)})
        if not resumed:
            trained |= {key: np.asarray(leaves[key], np.float32) for key in learns}
        frozen |= {key: np.asarray(x, config.dtype) for key, x in leaves.items() if key not in learns}
    has_real_rows = config.lora_alone or any(source.real for source in config.data.sources)
    if any(key.startswith("lora.") for key in trained) and not has_real_rows:
        raise InputError(
            "lora: beside other weights the factors learn from rows of sources with `real: true` only, but "
            "data.sources has none; mark one as real, train the factors alone (trainable='[lora]'), or remove lora"
        )
    return trained, frozen


def check_latents(config: TrainConfig, made_by: str) -> None:
    """InputError unless the run can be fed latents that the VAE with the fingerprint `made_by` has cached."""
    if config.loss.condition_noise is not None:
        raise InputError("loss.condition_noise is added to pixels, but data.sources holds latents; set it to null")
    origin = resolve_sources(config).get("vae")
    if origin is None:
        raise InputError("start gives no vae; name the one that the cached latents were made with as start.vae")
    found = fingerprint(origin.load("vae"))
    if found != made_by:
        raise InputError(
            f"start.vae {origin.path}: has the fingerprint {found}, but the cached latents were made with {made_by}; "
            "start with that VAE, or encode the clips anew"
        )


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def export(
    run: str | Path, destination: str | Path, overwrite: bool = False, dtype: str | None = None, log: Log = print
) -> None:
    """Writes the averaged weights of a run's last checkpoint, and the frozen ones beside them, as a checkpoint.

    dtype: to store them in; None: as they are, float32 where they learnt.

    InputError if there is no checkpoint yet, or `destination` exists or cannot be written.
    """
    orbax.check_destination(destination, overwrite)
    train, model = run_dir.read(run)
    origin, step = WeightSource(str(run)), run_dir.last_step(run)
    cast = lambda name: jax.tree.map(lambda x: np.asarray(x, dtype), origin.load(name))
    parts = {name: functools.partial(cast, name) for name in components(train) if name in KEPT}
    orbax.save(destination, model, parts, overwrite)
    log(f"wrote {destination}: {', '.join(parts)} of {run} after step {step}")
