#!/usr/bin/env bash
# Measure training on this machine in under ten minutes, and append a row to benchmarks/RESULTS.md.
#
#   benchmarks/accelerator.sh
#
#   --small        few steps of small images: a CPU's default, to try the script itself
#   --minutes=N    give up what does not fit into N minutes (default 10)
#   --out=FILE     append the row there instead
#
# Measured: train and evaluation steps of each family in bfloat16, with both implementations of batch
# norm where there are two (config.model.norm_impl), the input pipeline on synthetic JPEGs, the loop
# relative to the step, the stall of a checkpoint, and a restart. The data sets need not be here.
# PYTHON=... chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

small="" minutes=10 longest=150 out=benchmarks/RESULTS.md
command="benchmarks/accelerator.sh $*"
for argument in "$@"; do
  case $argument in
    --small) small=yes ;;
    --minutes=*) minutes=${argument#*=} ;;
    --out=*) out=${argument#*=} ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "error: unknown flag $argument; see --help" >&2; exit 1 ;;
  esac
done
[[ $minutes =~ ^[1-9][0-9]*$ ]] || { echo "error: --minutes=$minutes is not a number" >&2; exit 1; }
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi

results=$(mktemp) programs=$(mktemp -d)
trap 'rm -rf "$results" "$programs"' EXIT
# The checkpoint's step is the one that was timed before it. benchmarks.restart keeps its own.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$programs}
platform=$("$PYTHON" -c 'import jax; print(jax.default_backend())')
[[ $platform == cpu ]] && small=yes
echo "measuring on $platform${small:+, small form} for at most $minutes minutes"

# measure LABEL MODULE ARGUMENT...: run a benchmark and keep its figures; a failure is no row's end.
measure() {
  local label=$1 left=$((minutes * 60 - SECONDS - 10)) figures
  shift
  ((left > longest)) && left=$longest
  if ((left < 20)); then
    echo "$label: no time left"
    return
  fi
  echo "$label ..."
  if figures=$(timeout "$left" "$PYTHON" -m "$@" --json | tail -n 1) && [[ $figures == "{"* ]]; then
    printf '{"label": "%s", "figures": %s}\n' "$label" "$figures" >> "$results"
  else
    echo "$label: failed, or took longer than $left s" >&2
  fi
}

steps=(--steps=20 --repeats=3) batch=(--config.batch_size=256 --config.eval.batch_size=256)
saving=(--rounds=3) looping=(--rounds=2) reading=(--seconds=2)
if [[ $small ]]; then
  steps=(--steps=1 --repeats=2)
  batch=(--config.batch_size=8 --config.eval.batch_size=8
    --config.augment.image_size=32 --config.eval.image_size=32 --config.eval.resize=32)
  saving=(--rounds=1 --steps=2) reading=(--seconds=0.2 --config.batch_size=8)
  looping=(--rounds=1 --config.epochs=2 --config.batch_size=256)
fi
# family CONFIG WIDTH: steps with each implementation of batch norm; WIDTH is that of the small form.
family() {
  local config=$1 width=$2 name norm norms=("")
  name=${config##*[/:]} name=${name%.py}
  "$PYTHON" - "$config" << 'END' && norms=(moments plain)
import sys
from imagenet_jax import config
sys.exit("norm_impl" not in config.load(sys.argv[1], []).model)
END
  for norm in "${norms[@]}"; do
    measure "$name${norm:+ $norm}" benchmarks.train_step --eval "--config=$config" \
      --config.model.dtype=bfloat16 "${steps[@]}" "${batch[@]}" \
      ${small:+"--config.model.width=$width"} ${norm:+"--config.model.norm_impl=$norm"}
  done
}

# What a reader looks for first comes first, in case the time is short.
family configs/resnet50.py 0.125
measure input imagenet_jax.data.bench --config=configs/resnet50.py --config.data.source=synthetic \
  "${reading[@]}"
measure checkpoint benchmarks.checkpoint --config=configs/resnet50.py "${saving[@]}" "${batch[@]}" \
  --config.model.dtype=bfloat16 ${small:+--config.model.width=0.125}
measure loop benchmarks.loop "${looping[@]}"
measure restart benchmarks.restart
family configs/vgg.py:vgg16 0.0625
family configs/bit.py 0.5
"$PYTHON" -m benchmarks.accelerator_row --figures="$results" --command="${command% }" --out="$out"
