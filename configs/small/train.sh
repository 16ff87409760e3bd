#!/usr/bin/env bash
# Trains the built-in small renderers from scratch on synthetic clips: bash configs/small/train.sh
#
# Rerun the same command to resume. On two CPU cores it takes more than six hours (docs/training.md); the two renderers train
# side by side. DATA, RUNS and OUT change the folders.
set -euo pipefail
cd "$(dirname "$0")/../.."
data=${DATA:-data} runs=${RUNS:-runs} out=${OUT:-checkpoints}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$runs/xla}
# Wide vectors, and pages that stay mapped: faster on a CPU.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_cpu_prefer_vector_width=512"
export GLIBC_TUNABLES=glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=8589934592

# --- scenes: many single frames, some clips in motion, and held-out clips, which share no shape or map with the others
python -m drender.synthetic "$data/images" --split train --clips 13000 --frames 1
python -m drender.synthetic "$data/clips" --split train --clips 500 --frames 8 --seed 2
python -m drender.synthetic "$data/held-out" --split test --clips 64 --frames 8 --seed 1 --lights 2

# --- the auto-encoder, on two simulated devices, so that JAX uses two cores; then all latents, once
JAX_NUM_CPU_DEVICES=2 python train.py --config configs/small/vae.yaml output="$runs/small-vae" \
    data.sources="[{path: $data/images}]" evaluation.path="$data/held-out" mesh.data=2 mesh.fsdp=1
test -d "$out/small-vae" || python convert_weights.py "$runs/small-vae" "$out/small-vae"
for set in images clips; do
    JAX_NUM_CPU_DEVICES=2 python -m drender.data encode "$data/$set" "$data/$set-latents" --size 64 64 \
        --checkpoint "$out/small-vae" --environment-size 64 64
done

# --- the renderers, on all frames as images; then the temporal layers of the inverse renderer, on clips
sources="[{path: $data/images-latents, weight: 0.8}, {path: $data/clips-latents, weight: 0.2}]"
renderer() {
    python train.py --config "configs/small/$1.yaml" output="$runs/small-$1" init_from="{vae: $out/small-vae}" \
        data.sources="$sources" evaluation.path="$data/held-out" data.num_workers=2
}
trap 'jobs -p | xargs -r kill' EXIT # if one stops, stop and save the other
renderer forward &
renderer inverse
python train.py --config configs/small/inverse_clips.yaml output="$runs/small-inverse-clips" data.num_workers=2 \
    init_from="$runs/small-inverse" data.sources="[{path: $data/clips-latents}]" evaluation.path="$data/held-out"
wait %1

# --- the inverse renderer goes on with scenes of everyday objects, about 130 MB of open assets; then the temporal layers
assets=$data/assets
test -d "$assets" || python -m drender.synthetic assets "$assets"
everyday() {
    set=$1 latents=$1-latents
    shift
    python -m drender.synthetic "$data/$set" --split train --meshes "$assets/objects" --textures "$assets/textures" \
        --environments "$assets/environments" "$@"
    JAX_NUM_CPU_DEVICES=2 python -m drender.data encode "$data/$set" "$data/$latents" --size 64 64 \
        --checkpoint "$out/small-vae" --no-environment --variants 2 --flip 0.5 --exposure-range 0.6 1.6
}
everyday everyday --clips 2000 --frames 1 --size 128 128
everyday everyday-clips --clips 18 --frames 8 --seed 5
python train.py --config configs/small/inverse.yaml output="$runs/small-inverse-everyday" init_from="$runs/small-inverse-clips" \
    data.sources="[{path: $data/everyday-latents}]" evaluation.path="$data/held-out" data.num_workers=1 \
    data.passes='[basecolor, basecolor, normal, normal, depth, depth, metallic, roughness]' \
    optimizer.steps=3200 optimizer.learning_rate=6e-4 optimizer.warmup=100
python train.py --config configs/small/inverse_clips.yaml output="$runs/small-inverse-everyday-clips" data.num_workers=1 \
    init_from="$runs/small-inverse-everyday" data.sources="[{path: $data/everyday-clips-latents}]" \
    evaluation.path="$data/held-out" optimizer.steps=250 optimizer.warmup=25
test -d "$out/small-inverse" || python convert_weights.py "$runs/small-inverse-everyday-clips" "$out/small-inverse" --dtype bfloat16
test -d "$out/small-forward" || python convert_weights.py "$runs/small-forward" "$out/small-forward" --dtype bfloat16
python benchmarks/quality.py "$data/held-out" --inverse "$out/small-inverse" --forward "$out/small-forward"
