#!/usr/bin/env bash
# A job in an environment with the base dependencies alone: .ci/base_job.sh PYTHON FOLDER, from any folder.
# Every module imports (an extra may be missing if the error names it), the built-in models sample, and the result trains.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd) python=$1 folder=$2
export XDG_CACHE_HOME=$folder/cache
"$python" - <<'PY'
import importlib, pkgutil, sys, drender

failed = []
for module in pkgutil.walk_packages(drender.__path__, "drender."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except Exception as error:
            if "drender[" not in str(error) and ".[" not in str(error):
                failed.append(f"{module.name}: {type(error).__name__}: {error}")
sys.exit("\n".join(failed) or 0)
PY
"$python" "$root/sample.py" relight --output "$folder/relight"
# Trains past an evaluation, whose pictures go to TensorBoard.
"$python" "$root/train.py" --config "$root/configs/small/inverse.yaml" output="$folder/run" init_from="$root/drender/assets/inverse" \
  data.sources="[{path: $folder/relight/gbuffers}]" data.size="[64, 64]" data.frames=1 data.batch=2 optimizer.steps=2 \
  evaluation.every=1 evaluation.path="$folder/relight/gbuffers"
