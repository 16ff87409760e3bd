"""The configuration of a training run: frozen dataclasses, filled from a YAML file and `key=value` overrides.

Numbers that the paper leaves open have their default here, with its source.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from drender.data.config import DataConfig
from drender.errors import InputError, unknown_name_error
from drender.fields import bounded, check_ranges, from_dict
from drender.files import expand_home, read_text
from drender.sharding import MeshConfig


@dataclass(frozen=True)
class LossConfig:
    """The loss. All but `kl` concern the diffusion objectives, `inverse` and `forward`.

    Attributes:
      log_sigma_mean, log_sigma_std: ln σ is normal with this mean and standard deviation. The defaults are those of
        SVD's fine-tuning code; the paper's are unpublished.
      one_step: train a one-step model, which predicts from zeros (`Sampling.deterministic` when sampling).
      consistency: learn what the network itself predicts at this fraction of the noise level, so that few steps suffice
        when sampling; 0: learn the clip, as published. Begin from a model trained with 0.
      condition_dropout: probability of dropping a condition. The environment images are one condition.
      all_dropout: probability of dropping all conditions together.
      condition_noise: mean and standard deviation of the log of the noise added to conditioning pixels in [-1, 1];
        (-3, 0.5) in SVD. It needs pixels, not cached latents. None: no noise.
      temporal_gradient: weight of the error's change from frame to frame, against flicker; 0 as published.
      perceptual: weight of the LPIPS distance of decoded images, against blur, for one-step models; 0 as published.
      kl: the VAE's weight of the divergence from a unit Gaussian, per pixel value.
    """

    log_sigma_mean: float = bounded(0.7)
    log_sigma_std: float = bounded(1.6, at_least=0)
    one_step: bool = False
    consistency: float = bounded(0.0, at_least=0, below=1)
    condition_dropout: float = bounded(0.1, at_least=0, at_most=1)
    all_dropout: float = bounded(0.05, at_least=0, at_most=1)
    condition_noise: tuple[float, float] | None = bounded(None)
    temporal_gradient: float = bounded(0.0, at_least=0)
    perceptual: float = bounded(0.0, at_least=0)
    kl: float = bounded(1e-6, at_least=0)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank factors of the UNet's attention projections.

    Trained together with other weights they act on rows of sources marked `real` only, as published. Trained alone
    (`trainable: [lora]`) they act on all rows.
    """

    rank: int = bounded(16, at_least=1)  # of the factors
    alpha: float | None = bounded(None)  # the correction is scaled by alpha/rank; None: the rank, for a factor of 1
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out")  # names of the adapted layers


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019) in float32; defaults within the range of published related work."""

    steps: int = bounded(20_000, at_least=1)  # of the whole run
    learning_rate: float = bounded(3e-5, above=0)  # the peak, reached after the warm-up
    warmup: int = bounded(1000, at_least=0)  # steps of linear warm-up
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up; the others end at 0
    betas: tuple[float, float] = bounded((0.9, 0.999), at_least=0, below=1)  # decay rates of the moments
    weight_decay: float = bounded(1e-2, at_least=0)  # on kernels and LoRA factors only
    max_grad_norm: float = bounded(1.0, above=0)  # global norm that gradients are clipped to
    # Decay of the EMA of the weights, which is evaluated and exported. It is warmed up, so that the average never
    # reaches back beyond the run's beginning.
    ema_decay: float = bounded(0.9999, at_least=0, at_most=1)
    grad_accum_steps: int = bounded(1, at_least=1)  # microbatches per step


@dataclass(frozen=True)
class EvaluationConfig:
    """Periodic evaluation on held-out clips with the EMA weights: the loss, and the metrics of samples."""

    path: str | None = None  # a folder of clips; None: no evaluation
    every: int = bounded(1000, at_least=1)  # steps between evaluations
    clips: int = bounded(4, at_least=1)  # largest number of clips, taken in order
    # Fixed noise levels of the validation loss, about the quantiles 1/6, 1/2 and 5/6 of the default training
    # distribution; a one-step model has its own level. Empty: no validation loss.
    sigmas: tuple[float, ...] = bounded((0.4, 2.0, 10.0), empty=True, above=0)
    num_steps: int = bounded(20, at_least=1)  # sampler steps; ignored by a one-step model
    lora_scale: float = bounded(1.0)  # of the merged LoRA factors: 1 as on real sources, 0 as on synthetic ones


@dataclass(frozen=True)
class ProfileConfig:
    """A trace of some steps by `jax.profiler`, in `profile/` of the run, for XProf or Perfetto."""

    steps: tuple[int, int] | None = bounded(None, at_least=1)  # first and last to trace, counted from 1; None: no trace


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
      objective: one of `drender.training.losses.OBJECTIVES`.
      output: folder of the run. If it holds a run already, that run is resumed.
      data: the training rows.
      init_from: a checkpoint or a run to take weights from, for all components or per component; the rest is randomly
        initialized.
      model: changes of the configuration of `init_from` (or, without it, of the full-size defaults), by the keys of a
        checkpoint's config.json.
      trainable: patterns of dotted parameter names (`*` matches anything); None: the objective's usual components.
      lora: low-rank factors to train; None: no factors.
      dtype: of the computation; master weights, EMA and loss are float32.
      remat: recompute the inside of every block in the backward pass instead of storing it.
      seed: of all random numbers.
      log_every, save_every: steps between logs and between checkpoints.
      keep_checkpoints: number of last checkpoints to keep.
      keep_every: keep the checkpoints after multiples of so many steps for good; None: only the last ones.
      keep_best: also keep the checkpoint with the best value of this metric of the evaluations, by its name in
        metrics.jsonl, such as `evaluation/loss/mean`. Then every evaluated step is saved.
      logger: where curves and pictures go besides metrics.jsonl and TensorBoard: `wandb`, or None.
      profile: steps to trace.
    """

    objective: Literal["inverse", "forward", "environment", "vae"]
    output: str
    data: DataConfig
    init_from: str | dict[str, str] | None = None
    model: dict[str, Any] = field(default_factory=dict)
    trainable: tuple[str, ...] | None = None
    lora: LoraConfig | None = None
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: bool = True
    seed: int = bounded(0, at_least=0, below=2**31)
    log_every: int = bounded(10, at_least=1)
    save_every: int = bounded(500, at_least=1)
    keep_checkpoints: int = bounded(2, at_least=1)
    keep_every: int | None = bounded(None, at_least=1)
    keep_best: str | None = None
    logger: Literal["wandb"] | None = None
    profile: ProfileConfig = ProfileConfig()

    def __post_init__(self):
        check_ranges(self)
        loss, renders = self.loss, self.objective in ("inverse", "forward")
        if loss.temporal_gradient and (self.data.frames == 1 or self.data.image_fraction == 1):
            problem = f"loss.temporal_gradient: expected 0 for rows of single images, got {loss.temporal_gradient}"
            raise InputError(f"{problem}; use data.frames of 2 or more and data.image_fraction below 1, or remove it")
        if loss.perceptual and not (loss.one_step and renders):
            problem = f"loss.perceptual: expected 0 but for one-step renderers, got {loss.perceptual}"
            reason = "a prediction from noise is a mean without detail to compare"
            raise InputError(f"{problem}; {reason}. Set loss.one_step, or remove it")
        if loss.consistency and (loss.one_step or not renders):
            problem = f"loss.consistency: expected 0 unless a renderer samples from noise, got {loss.consistency}"
            raise InputError(f"{problem}; remove it, or loss.one_step")
        if self.trainable == ():
            raise InputError("trainable: expected patterns of names, got none; leave it out for the usual components")
        if self.lora is not None and not renders:
            raise InputError(f"lora belongs to the UNet, which objective {self.objective!r} does not train; remove it")
        if self.keep_every is not None and self.keep_every % self.save_every:
            problem = f"expected a multiple of save_every {self.save_every}, got {self.keep_every}"
            raise InputError(f"keep_every: {problem}; change either")
        if self.keep_best is not None and self.evaluation.path is None:
            raise InputError(f"keep_best: {self.keep_best} needs evaluations; set evaluation.path, or remove it")
        if self.profile.steps is not None and self.profile.steps[0] > self.profile.steps[1]:
            raise InputError(f"profile.steps: expected the first and the last step, got {list(self.profile.steps)}")


# The shipped configurations: inside an installed package, or beside it in a clone.
_PLACES = [folder / "configs" for folder in Path(__file__).parents[1:3]]
CONFIGS = next(filter(Path.is_dir, _PLACES), _PLACES[0])


# --- from YAML -------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, which YAML 1.1 reads as a string, and in which a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.YAMLError(f"the key {repeated!r} is given twice")
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_config(path: str | Path, overrides: Iterable[str] = ()) -> TrainConfig:
    """Read a run's YAML file and apply overrides.

    Args:
      path: the file, whose keys are the fields of `TrainConfig`, or the name of a shipped one, such as "small/inverse".
      overrides: `key=value` each, with a dotted key ("optimizer.learning_rate=1e-4") and a YAML value.
    Raises:
      InputError: the file is missing or invalid, or a key is unknown, or a value has the wrong type or range. It names
        the file or the override.
    """
    file, shipped = expand_home(path), CONFIGS / f"{path}.yaml"
    try:
        text = read_text(shipped if shipped.is_file() and not file.is_file() else file)
    except OSError as error:
        names = ", ".join(sorted(str(x.relative_to(CONFIGS).with_suffix("")) for x in CONFIGS.rglob("*.yaml")))
        raise InputError(f"cannot read {path}: {error.strerror}; give a file, or one of {names}") from error
    except UnicodeDecodeError:
        raise InputError(f"{path}: invalid YAML (not UTF-8)") from None
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected keys and values such as 'objective: inverse'")
    for override in overrides:
        _apply(override, values)
    return from_dict(TrainConfig, values, str(path))


def _apply(override: str, values: dict) -> None:
    """Change one value of a nested dict, whose branches may be shared by YAML aliases.

    Raise InputError for an unknown key or a wrong type here, so that the YAML file is not blamed for an override.
    """
    name, equals, text = override.partition("=")
    where = f"override {override!r}"
    if not equals or not name:
        raise InputError(f"{where}: expected key=value, such as optimizer.learning_rate=1e-4")
    value, keys, hint = _parse_yaml(text, where), name.split("."), TrainConfig
    for key in keys:
        members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        hints = next((typing.get_type_hints(member) for member in members if dataclasses.is_dataclass(member)), None)
        if hints is None:  # in a free mapping such as `model`
            break
        if key not in hints:
            raise InputError(f"{where}: {unknown_name_error('key', key, hints)}")
        hint = hints[key]
    else:
        from_dict(dataclasses.make_dataclass("Override", [(key, hint)]), {key: value}, where)
    for parent in keys[:-1]:
        inner = values.get(parent)
        values[parent] = dict(inner) if isinstance(inner, dict) else {}
        values = values[parent]
    values[keys[-1]] = value


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise InputError(f"{where}: too deeply nested") from None
    # Besides YAMLError, malformed dates and numbers make their constructors raise any of the others.
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        raise InputError(f"{where}: invalid YAML ({' '.join(str(error).split())})") from error
