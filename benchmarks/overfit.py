"""Can it learn at all? One clip, learnt by heart: auto-encoder, inverse and forward renderer, through the real sampler.

    python -m drender.synthetic clip --clips 1 --frames 2 --size 16 16
    python benchmarks/overfit.py clip runs/overfit

Every stage is an ordinary run of train.py's loop, with the small configurations made smaller still, and evaluated on
the clip that it learns from, in 20 steps from noise. Prints the last evaluation of each.
"""

import json
from pathlib import Path

from drender import cli
from drender.training import config, loop

CONFIGS = Path(__file__).parents[1] / "configs"
UNET = {
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
    "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
    "num_attention_heads": [2, 4],
}


def main() -> None:
    args = parser().parse_args()
    vae = under("model.vae", block_out_channels=[32, 32], latent_channels=4, scaling_factor=args.scaling_factor)
    run(args, "vae", vae | {"data.images": 1.0, "data.frames": 1, "data.batch": 6})
    rest = vae | {"start": {"vae": str(Path(args.output) / "vae")}, "model.environment_size": [16, 16]}
    run(args, "inverse", rest | under("model.unet", **UNET) | {"data.batch": 5})
    forward = under("model.unet", **UNET | {"in_channels": 24, "cross_attention_dim": [32, 64]})
    run(args, "forward", rest | forward | under("model.env_encoder", in_channels=12, channels=[32, 64]))


def under(prefix: str, **values) -> dict:
    return {f"{prefix}.{name}": value for name, value in values.items()}


def run(args, objective: str, changes: dict) -> None:
    """One run of the small configuration with changes, by dotted name."""
    output = Path(args.output) / objective
    changes = {
        "output": str(output),
        "data.sources": [{"path": args.clip}],
        "data.batch": 2,
        "data.frames": 2,
        "data.images": 0.0,
        "data.size": [16, 16],
        "data.flip": 0.0,
        "loss.deterministic": False,
        "optimizer.steps": args.steps,
        "optimizer.learning_rate": 2e-3,
        "evaluation.path": args.clip,
        "evaluation.every": args.steps,
        "log_every": 100,
    } | changes
    overrides = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
    loop.train(config.read(CONFIGS / f"small-{objective}.yaml", overrides))
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    last = [line for line in lines if any(name.startswith("evaluation") for name in line)][-1]
    print(f"--- {objective} after {last.pop('step')} steps: " + ", ".join(f"{k[11:]} {v:.4g}" for k, v in last.items()))


def parser() -> cli.Parser:
    top = cli.Parser(description=__doc__.partition("\n")[0])
    top.add_argument("clip", type=cli.path, metavar="FOLDER", help="of one clip of 2 frames of 16×16 pixels")
    top.add_argument("output", type=cli.path, metavar="RUNS", help="for the runs")
    top.add_argument("--steps", type=int, default=2000, metavar="N", help="of each renderer")
    top.add_argument("--scaling-factor", type=float, default=0.5, metavar="X", help="of the latents")
    return top


if __name__ == "__main__":
    cli.run(main)
