#!/usr/bin/env bash
# Trains the small renderers that come with the package, from nothing, on synthetic clips: bash configs/train_small.sh
#
# Every step can be interrupted; the same command goes on. On two CPU cores it takes about two and a quarter hours (see
# README.md); the two renderers learn side by side. DATA, RUNS and OUT change the folders.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${DATA:-data} runs=${RUNS:-runs} out=${OUT:-checkpoints}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$runs/xla}
# Wide vectors, and pages that stay mapped: faster on a CPU.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_cpu_prefer_vector_width=512"
export GLIBC_TUNABLES=glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=8589934592

# --- clips: pairs of frames to learn from, and held-out ones under two lights, which share no shape or map with them
python -m drender.synthetic "$data/images" --split train --clips 3000 --frames 2
python -m drender.synthetic "$data/held-out" --split test --clips 64 --frames 8 --seed 1 --lights 2

# --- the auto-encoder, on two make-believe devices, which is how JAX uses two cores; then everything as latents, once
JAX_NUM_CPU_DEVICES=2 python train.py --config configs/small-vae.yaml output="$runs/small-vae" \
    data.sources="[{path: $data/images}]" evaluation.path="$data/held-out" mesh.data=2 mesh.fsdp=1
test -d "$out/small-vae" || python convert_weights.py "$runs/small-vae" "$out/small-vae"
JAX_NUM_CPU_DEVICES=2 python -m drender.data encode "$data/images" "$data/images-latents" --size 64 64 \
    --checkpoint "$out/small-vae" --environment-size 64 64 --variants 2 --flip 1 --intensity 0.7 1.4

# --- the renderers
for kind in inverse forward; do
    python train.py --config "configs/small-$kind.yaml" output="$runs/small-$kind" start="{vae: $out/small-vae}" \
        data.sources="[{path: $data/images-latents}]" evaluation.path="$data/held-out" data.threads=2 &
done
wait -n && wait -n
for kind in inverse forward; do
    test -d "$out/small-$kind" || python convert_weights.py "$runs/small-$kind" "$out/small-$kind" --dtype float16
done
python benchmarks/quality.py "$data/held-out" --inverse "$out/small-inverse" --forward "$out/small-forward"
