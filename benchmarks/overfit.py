"""Overfit one clip with the auto-encoder, the inverse and the forward renderer, through the real sampler.

    python -m drender.synthetic clip --clips 1 --frames 2 --size 16 16
    python benchmarks/overfit.py clip runs/overfit

Each is an ordinary training run with an even smaller version of the small configurations. It is evaluated on the clip
that it trains on, in 20 steps from noise. The last evaluation of each run is printed.
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
    vae = prefixed("model.vae", block_out_channels=[32, 32], latent_channels=4, scaling_factor=args.scaling_factor)
    run(args, "vae", vae | {"data.image_fraction": 1.0, "data.frames": 1, "data.batch": 6})
    rest = vae | {"init_from": {"vae": str(Path(args.output) / "vae")}, "model.environment_size": [16, 16]}
    run(args, "inverse", rest | prefixed("model.unet", **UNET) | {"data.batch": 5})
    forward = prefixed("model.unet", **UNET | {"in_channels": 24, "cross_attention_dim": [32, 64]})
    run(args, "forward", rest | forward | prefixed("model.env_encoder", in_channels=12, channels=[32, 64]))


def prefixed(prefix: str, **values) -> dict:
    return {f"{prefix}.{name}": value for name, value in values.items()}


def run(args, objective: str, changes: dict) -> None:
    """Train a small configuration with changes, by dotted name."""
    output = Path(args.output) / objective
    changes = {
        "output": str(output),
        "data.sources": [{"path": args.clip}],
        "data.batch": 2,
        "data.frames": 2,
        "data.image_fraction": 0.0,
        "data.size": [16, 16],
        "data.flip": 0.0,
        "loss.one_step": False,
        "optimizer.steps": args.steps,
        "optimizer.learning_rate": 2e-3,
        "evaluation.path": args.clip,
        "evaluation.every": args.steps,
        "log_every": 100,
    } | changes
    overrides = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
    loop.train(config.read_config(CONFIGS / "small" / f"{objective}.yaml", overrides))
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    last = [line for line in lines if any(name.startswith("evaluation") for name in line)][-1]
    print(f"--- {objective} after {last.pop('step')} steps: " + ", ".join(f"{k[11:]} {v:.4g}" for k, v in last.items()))


def parser() -> cli.Parser:
    top = cli.Parser(description=__doc__.partition("\n")[0])
    top.add_argument("clip", type=cli.path, metavar="FOLDER", help="folder of one clip of 2 frames of 16×16 pixels")
    top.add_argument("output", type=cli.path, metavar="RUNS", help="folder for the runs")
    top.add_argument("--steps", type=int, default=2000, metavar="N", help="training steps of each network")
    top.add_argument("--scaling-factor", type=float, default=0.5, metavar="X", help="scaling factor of the latents")
    return top


if __name__ == "__main__":
    cli.run(main)
