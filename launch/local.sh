#!/usr/bin/env bash
# Train on this machine, and restart automatically after a crash or a stop by the system.
#
#   launch/local.sh --config=configs/resnet50.py --workdir=runs/resnet50 [--config.FIELD=VALUE ...]
#
#   --processes=N  number of processes, which divide the GPUs among them (default 1)
#   --restarts=N   give up after N restarts because of crashes (default 3)
#   --dry_run      print the commands without running them
#
# The first Ctrl-C or SIGTERM makes every process save and exit, without a restart. A second one makes
# them exit without saving, and a third one kills them. All other flags go to
# `python -m imagenet_jax.main`. PYTHON=... chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

processes=1 restarts=3 dry_run="" arguments=()
for argument in "$@"; do
  case $argument in
    --processes=*) processes=${argument#*=} ;;
    --restarts=*) restarts=${argument#*=} ;;
    --dry_run) dry_run=yes ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) arguments+=("$argument") ;;
  esac
done
for number in "$processes" "$restarts"; do
  [[ $number =~ ^[0-9]+$ ]] || { echo "error: $number is not a number" >&2; exit 1; }
done
((processes > 0)) || { echo "error: --processes=0: at least 1" >&2; exit 1; }
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
command=("$PYTHON" -m imagenet_jax.main ${arguments[@]+"${arguments[@]}"})

gpus=0
if ((processes > 1)) && [[ -n $(type -P nvidia-smi) ]]; then
  gpus=$({ nvidia-smi -L 2> /dev/null || true; } | grep -c '^GPU' || true)
  if ((gpus % processes)); then
    echo "error: --processes=$processes does not divide the $gpus GPUs" >&2
    exit 1
  fi
fi

# Put the command of process $1 into the array `one`; the coordinator listens on port $2.
set_one() {
  one=("${command[@]}")
  ((processes > 1)) || return 0
  one+=("--coordinator=127.0.0.1:$2" "--num_processes=$processes" "--process_id=$1")
  if ((gpus)); then
    local each=$((gpus / processes))
    one=(env "JAX_LOCAL_DEVICE_IDS=$(seq -s, $(($1 * each)) $(($1 * each + each - 1)))" "${one[@]}")
  fi
}

children=() stopped=0
forward() { # SIGNAL; after two signals the processes are assumed to hang
  stopped=$((stopped + 1))
  ((${#children[@]})) || return 0
  if ((stopped > 2)); then set -- KILL; fi
  kill -s "$1" "${children[@]}" 2> /dev/null || true
}
trap 'forward INT' INT
trap 'forward TERM' TERM

# Start all processes and wait for them. `code` is set to the first exit code that is not a stop by a
# signal, if there is one: such a process ends the others, which then report a stop.
run_once() {
  local port=$((20000 + RANDOM % 20000)) i pid ended left
  children=() code=0
  for ((i = 0; i < processes; i++)); do
    set_one "$i" "$port"
    # In a separate process group, so that Ctrl-C reaches training only once, from here: a second
    # signal would mean "do not save".
    set -m
    "${one[@]}" < /dev/null &
    set +m
    children+=("$!")
  done
  while ((${#children[@]})); do
    left=()
    for pid in "${children[@]}"; do
      if kill -0 "$pid" 2> /dev/null; then
        left+=("$pid")
        continue
      fi
      ended=0
      wait "$pid" || ended=$?
      case $code in 0 | 130 | 143) ((ended == 0)) || code=$ended ;; esac
    done
    # Stop the peers of a dead process, which would otherwise wait until its heartbeat times out.
    # Peers that are saving after a signal (143, 130) must not get another one.
    if ((code != 0 && code != 143 && code != 130 && ${#left[@]} && ${#left[@]} < ${#children[@]})); then
      kill -s TERM "${left[@]}" 2> /dev/null || true
    fi
    children=(${left[@]+"${left[@]}"})
    sleep 0.2 || true # Ctrl-C interrupts it
  done
}

if [[ $dry_run ]]; then
  for ((i = 0; i < processes; i++)); do
    set_one "$i" PORT
    printf '%q ' "${one[@]}"
    echo
  done
  echo "# restarted after a stop by the system (143) and, up to $restarts times, a crash (above 128)"
  exit 0
fi

crashes=0
while :; do
  run_once
  if ((stopped || code <= 128 || code == 130)); then
    exit "$code"
  elif ((code != 143)); then
    crashes=$((crashes + 1))
    if ((crashes > restarts)); then
      echo "launch: exit code $code; giving up after $restarts restarts" >&2
      exit "$code"
    fi
  fi
  echo "launch: exit code $code; continuing from the last checkpoint" >&2
  sleep "${PAUSE_S:-5}" || true
  if ((stopped)); then exit "$code"; fi
done
