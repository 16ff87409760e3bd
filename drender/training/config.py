"""What a training run is made of, and its way from a YAML file and `key=value` overrides.

Every number that the paper leaves open has its default here, with where it comes from.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from drender.config import from_dict
from drender.data.config import DataConfig
from drender.errors import InputError
from drender.files import expand_home
from drender.sharding import MeshConfig


@dataclass(frozen=True)
class LossConfig:
    """The loss; of the diffusion objectives unless said otherwise.

    Attributes:
      log_sigma_mean, log_sigma_std: ln σ is normal with these, as SVD's fine-tuning code has it; the paper's are
        unpublished.
      deterministic: one step from zeros instead, as `Sampling.deterministic` samples.
      condition_dropout: probability that a condition is left out; the environment's images are one condition.
      all_dropout: probability that all conditions are left out together.
      condition_noise: mean and deviation of the log of the noise added to conditioning pixels in [-1, 1], (-3, 0.5) in
        SVD; needs pixels, not cached latents. None: none.
      temporal: weight of the change of the error from frame to frame, against flicker; 0: as published.
      kl: the VAE's weight of the divergence from a unit Gaussian, per pixel value.
    """

    log_sigma_mean: float = 0.7
    log_sigma_std: float = 1.6
    deterministic: bool = False
    condition_dropout: float = 0.1
    all_dropout: float = 0.05
    condition_noise: tuple[float, float] | None = None
    temporal: float = 0.0
    kl: float = 1e-6


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank factors of the UNet's attention projections.

    Beside a learning base they act on rows of sources marked `real`, as published. Trained alone (`trainable: [lora]`)
    they act on all rows.
    """

    rank: int = 16
    alpha: float | None = None  # None: the rank, a factor of 1
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019) in float32, within what related work publishes.

    Attributes:
      steps: of the whole run.
      learning_rate: after the warm-up.
      warmup: steps over which it rises linearly from 0.
      decay: how it falls afterwards, to 0 at the end of the run.
      weight_decay: on kernels only.
      clip: of the gradient's global norm.
      ema: decay of the moving average of the weights, which is what is evaluated and exported; it is warmed up, so that
        the average never looks back further than the run.
      accumulate: parts that a step's batch is split into, one after the other.
    """

    steps: int = 20_000
    learning_rate: float = 3e-5
    warmup: int = 1000
    decay: Literal["constant", "linear", "cosine"] = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    clip: float = 1.0
    ema: float = 0.9999
    accumulate: int = 1


@dataclass(frozen=True)
class EvaluationConfig:
    """Now and then the averaged weights are sampled on clips that are not trained on.

    Attributes:
      path: a folder of clips; None: no evaluation.
      every: steps between two.
      clips: at most so many, in order.
      num_steps: of the sampler; ignored by a deterministic model.
      lora_scale: how much of the factors is merged; 1 as they are on real sources, 0 as on synthetic ones.
    """

    path: str | None = None
    every: int = 1000
    clips: int = 4
    num_steps: int = 20
    lora_scale: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """One run.

    Attributes:
      objective: what is learnt.
      output: the run's folder.
      data: what it is fed.
      start: a checkpoint or a run to begin from, for all components or per component; what is in none begins at
        random. A run that is there in `output` is resumed instead.
      model: what differs from the start's configuration (or, without one, from the full-size defaults), as the keys of
        a checkpoint's config.json.
      trainable: patterns (`*` matches anything) of the dotted names that learn; None: the objective's usual ones.
      lora: factors for real sources; None: none.
      dtype: what is computed in; master weights, averages and the loss are float32.
      remat: recompute the inside of every block in the backward pass instead of keeping it.
      seed: of everything random.
      log_every, save_every: steps.
      keep: how many of the last checkpoints.
    """

    objective: Literal["inverse", "forward", "environment", "vae"]
    output: str
    data: DataConfig
    start: str | dict[str, str] | None = None
    model: dict[str, Any] = field(default_factory=dict)
    trainable: tuple[str, ...] | None = None
    lora: LoraConfig | None = None
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: bool = True
    seed: int = 0
    log_every: int = 10
    save_every: int = 500
    keep: int = 2

    def __post_init__(self):
        at_least = {
            "data.batch": (self.data.batch, 1),
            "data.frames": (self.data.frames, 1),
            "data.threads": (self.data.threads, 1),
            "optimizer.steps": (self.optimizer.steps, 1),
            "optimizer.warmup": (self.optimizer.warmup, 0),
            "optimizer.accumulate": (self.optimizer.accumulate, 1),
            "mesh.data": (self.mesh.data, 1),
            "mesh.fsdp": (1 if self.mesh.fsdp is None else self.mesh.fsdp, 1),
            "mesh.frames": (self.mesh.frames, 1),
            "lora.rank": (1 if self.lora is None else self.lora.rank, 1),
            "evaluation.every": (self.evaluation.every, 1),
            "evaluation.clips": (self.evaluation.clips, 1),
            "evaluation.num_steps": (self.evaluation.num_steps, 1),
            "optimizer.weight_decay": (self.optimizer.weight_decay, 0),
            "loss.log_sigma_std": (self.loss.log_sigma_std, 0),
            "loss.temporal": (self.loss.temporal, 0),
            "loss.kl": (self.loss.kl, 0),
            "log_every": (self.log_every, 1),
            "save_every": (self.save_every, 1),
            "keep": (self.keep, 1),
        }
        for name, (value, least) in at_least.items():
            if not value >= least:
                raise InputError(f"{name} is {value}; it must be {least} or more")
        for name in ("learning_rate", "clip"):
            if not 0 < (value := getattr(self.optimizer, name)) < math.inf:
                raise InputError(f"optimizer.{name} is {value}; it must be over 0")
        if not all(0 <= beta < 1 for beta in self.optimizer.betas):
            raise InputError(f"optimizer.betas are {self.optimizer.betas}; both must be in [0, 1)")
        shares = {
            "data.images": self.data.images,
            "data.flip": self.data.flip,
            "loss.condition_dropout": self.loss.condition_dropout,
            "loss.all_dropout": self.loss.all_dropout,
            "optimizer.ema": self.optimizer.ema,
        }
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise InputError(f"{name} is {value}; it must be in [0, 1]")
        if self.loss.temporal and (self.data.frames == 1 or self.data.images == 1):
            raise InputError(
                f"loss.temporal is {self.loss.temporal}, but every row is of single images; give it data.frames of 2 "
                "or more and data.images under 1, or leave it out"
            )
        if not self.data.sources:
            raise InputError("data.sources is empty; give at least one folder of clips")
        if not self.data.passes:
            raise InputError("data.passes is empty; name at least one G-buffer")
        if any(source.weight <= 0 for source in self.data.sources):
            raise InputError("data.sources: every weight must be over 0; leave a source out instead")
        if self.lora is not None and self.objective not in ("inverse", "forward"):
            raise InputError(f"lora belongs to the UNet, which objective {self.objective!r} does not train; remove it")

    @property
    def lora_alone(self) -> bool:
        """Whether nothing but the LoRA factors learns; they then act on all rows."""
        return bool(self.trainable) and all(pattern.partition(".")[0] == "lora" for pattern in self.trainable)


# --- from YAML -------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML, in which 1e-4 is a number as everywhere else, and not a string as YAML 1.1 has it."""


_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read(path: str | Path, overrides: Iterable[str] = ()) -> TrainConfig:
    """The run that a YAML file describes, with changes.

    Args:
      path: the file; its keys are the fields of `TrainConfig`.
      overrides: `key=value` each, the key dotted ("optimizer.learning_rate=1e-4"), the value YAML.
    Raises:
      InputError: no such file, no YAML, an unknown key (with the nearest known one), or a value of the wrong type.
    """
    try:
        text = expand_home(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise InputError(f"{path}: no YAML, for it is no UTF-8") from None
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected keys and values such as 'objective: inverse'")
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise InputError(f"override {override!r}: expected key=value, such as optimizer.learning_rate=1e-4")
        *parents, last = name.split(".")
        branch = values
        for parent in parents:
            inner = branch.get(parent)
            branch[parent] = dict(inner) if isinstance(inner, dict) else {}
            branch = branch[parent]
        branch[last] = _parse(text, f"override {override!r}")
    return from_dict(TrainConfig, values, str(path))


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise InputError(f"{where}: too deeply nested") from None
    # The others are of values that look like dates or numbers, or are tagged as such, and are none.
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        raise InputError(f"{where}: no YAML ({' '.join(str(error).split())})") from error
