#!/usr/bin/env bash
# Train on a TPU VM or pod slice: create it if needed, recreate it after preemption, and continue.
#
#   launch/tpu_vm.sh run --name=resnet50 --zone=us-west4-a --type=v5litepod-16 --spot \
#     --nfs=10.0.0.2:/share --config=configs/resnet50.py --workdir=/mnt/nfs/runs/resnet50 [...]
#   launch/tpu_vm.sh watch --name=NAME --zone=ZONE    show the output of worker 0
#   launch/tpu_vm.sh stop --name=NAME --zone=ZONE     save and stop; the VMs stay and cost
#   launch/tpu_vm.sh delete --name=NAME --zone=ZONE   delete the VMs
#
#   --type=TYPE      accelerator type (default v5litepod-16)
#   --version=IMAGE  runtime version (default v2-alpha-tpuv5-lite, for v5litepod)
#   --spot           about a third of the price, but may be preempted at any time
#   --nfs=HOST:/DIR  Filestore share for data and workdir, mounted at /mnt/nfs on every worker
#   --project=P      instead of gcloud's default project
#   --keep           keep the VMs when the run has finished
#   --dry_run        print the commands without running them
#
# If training is still running, `run` only watches it. All other flags go to
# `python -m imagenet_jax.main`.
set -euo pipefail
cd "$(dirname "$0")/.."

action=${1:-} name="" zone="" type=v5litepod-16 version=v2-alpha-tpuv5-lite nfs="" keep=""
dry_run="" create_flags=() place=() arguments=()
(($#)) && shift
for argument in "$@"; do
  value=${argument#*=}
  case $argument in
    --name=*) name=$value ;;
    --zone=*) zone=$value ;;
    --type=*) type=$value ;;
    --version=*) version=$value ;;
    --nfs=*) nfs=$value ;;
    --project=*) place+=("$argument") ;;
    --spot) create_flags+=("$argument") ;;
    --keep) keep=yes ;;
    --dry_run) dry_run=yes ;;
    *) arguments+=("$argument") ;;
  esac
done
say() {
  echo "launch: $1" >&2
}
fail() {
  echo "error: $1" >&2
  exit 1
}
case $action in
  run | watch | stop | delete) ;;
  -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *) fail "use launch/tpu_vm.sh run, watch, stop or delete; see --help" ;;
esac
[[ $name =~ ^[a-z][a-z0-9-]*$ ]] || fail "--name=$name: use lower-case letters, digits and -"
[[ $zone ]] || fail "--zone=ZONE is missing: the zone of the TPUs, such as us-west4-a"
place+=("--zone=$zone" --quiet)
if [[ $action == run ]]; then
  [[ $nfs =~ ^[^:]+:/[A-Za-z0-9._/-]+$ ]] ||
    fail "--nfs=HOST:/DIR is needed: every worker writes its part of a checkpoint there"
  [[ " ${arguments[*]-} " == *" --workdir=/mnt/nfs/"* ]] ||
    fail "--workdir must be below /mnt/nfs: preemption deletes a worker's own disk"
fi

gc() {
  if [[ $dry_run ]]; then
    printf '%q ' gcloud compute tpus tpu-vm "$@" "${place[@]}"
    echo
  else
    gcloud compute tpus tpu-vm "$@" "${place[@]}"
  fi
}
on() { # on WORKER COMMAND
  gc ssh "$name" "--worker=$1" "--command=$2"
}

create() {
  say "creating $name, $type in $zone"
  gc create "$name" "--accelerator-type=$type" "--version=$version" \
    ${create_flags[@]+"${create_flags[@]}"}
}

# Send the files of this checkout, with uncommitted changes, and the command to every worker.
sync() {
  git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do
      if [[ -e $file ]]; then printf '%s\0' "$file"; fi # skips uncommitted deletions
    done |
    tar -czf "$stage/imagenet_jax.tgz" --null -T - || return
  {
    echo '#!/usr/bin/env bash'
    echo 'cd ~/imagenet_jax || exit'
    printf '.venv/bin/python -u -m imagenet_jax.main'
    printf ' %q' "${arguments[@]}"
    printf ' >> train.log 2>&1 &\n'
    # shellcheck disable=SC2016 # expanded on the worker
    echo 'echo $! > train.pid; wait $!; code=$?; [ -e train.stop ] && code=130; echo $code > train.code'
  } > "$stage/imagenet_jax_train.sh"
  if [[ $dry_run ]]; then
    sed 's/^/# imagenet_jax_train.sh: /' "$stage/imagenet_jax_train.sh"
  fi
  gc scp "$stage/imagenet_jax.tgz" "$stage/imagenet_jax_train.sh" "$name:" --worker=all || return
  on all "set -e
    mkdir -p ~/imagenet_jax && tar -xzf imagenet_jax.tgz -C ~/imagenet_jax && cd ~/imagenet_jax
    if [ -e train.pid ]; then kill -KILL \$(cat train.pid) || true; fi
    rm -f train.pid train.code train.stop && touch train.log && mv train.log train.log.before
    python3 -m pip install --quiet --user uv
    test -x .venv/bin/python || python3 -m uv venv --quiet --python 3.12 .venv
    python3 -m uv pip install --quiet --python .venv/bin/python -r requirements.txt 'jax[tpu]' -c constraints.txt
    if ! mountpoint -q /mnt/nfs; then
      sudo apt-get install -qq -y nfs-common && sudo mkdir -p /mnt/nfs && sudo mount -t nfs $nfs /mnt/nfs
    fi"
}

start() {
  on all 'setsid nohup bash ~/imagenet_jax_train.sh > /dev/null 2>&1 < /dev/null &'
}

# Show the output of worker 0 until its training or the connection ends.
watch() {
  # shellcheck disable=SC2016
  on 0 'cd ~/imagenet_jax && until [ -s train.pid ]; do sleep 1; done; tail -n +1 -F --pid="$(cat train.pid)" train.log'
}

# Print "running", the exit code of training, or nothing. Uses standard output, because gcloud does
# not guarantee to return the exit code of a command over ssh.
training() {
  # shellcheck disable=SC2016
  on 0 'cd ~/imagenet_jax && if [ -e train.code ]; then cat train.code; elif kill -0 "$(cat train.pid)"; then echo running; fi' \
    2> /dev/null | tail -n 1
}

state() {
  gc describe "$name" '--format=value(state)' 2> /dev/null || echo MISSING
}

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

case $action in
  watch) watch; exit ;;
  delete) gc delete "$name"; exit ;;
  stop)
    # shellcheck disable=SC2016
    on all 'touch ~/imagenet_jax/train.stop && kill -TERM "$(cat ~/imagenet_jax/train.pid)"'
    exit
    ;;
esac

if [[ $dry_run ]]; then
  create
  sync
  start
  watch
  if [[ -z $keep ]]; then gc delete "$name"; fi
  echo "# after preemption: delete, create, then as above; the run continues from its last checkpoint"
  exit 0
fi

pause=${PAUSE_S:-30} failures=0
# Creation and ssh fail now and then; give up after five in a row. Lack of capacity does not count.
failed() {
  failures=$((failures + 1))
  ((failures <= 5)) || fail "$1; giving up. $name may still exist and cost; see launch/tpu_vm.sh delete"
  say "$1; trying again in $pause s"
  sleep "$pause"
}
while :; do
  current=$(state)
  case $current in
    READY) ;;
    MISSING)
      if ! create 2>&1 | tee "$stage/create.log" >&2; then
        if grep -qiE 'capacity|stockout|exhausted' "$stage/create.log"; then
          say "no capacity; trying again in $pause s"
          sleep "$pause"
        else
          failed "could not create $name"
        fi
      fi
      continue
      ;;
    PREEMPTED | TERMINATED)
      say "$name was preempted"
      gc delete "$name" || failed "could not delete $name"
      continue
      ;;
    *)
      say "$name is $current"
      sleep "$pause"
      continue
      ;;
  esac
  if [[ $(training || true) != running ]]; then
    if ! sync || ! start; then
      failed "could not start on $name"
      continue
    fi
  fi
  began=$SECONDS
  watch || say "the connection to worker 0 ended"
  if ((SECONDS - began > 600)); then failures=0; fi
  sleep "${SETTLE_S:-3}" # the exit code is written after the end of the log
  code=$(training || true)
  case $code in
    running) ;;
    "") sleep "$pause" ;; # the VM is lost or about to be; check its state
    0)
      [[ $keep ]] || gc delete "$name"
      exit 0
      ;;
    1 | 2 | 130)
      say "exit code $code. $name still exists and costs: launch/tpu_vm.sh delete --name=$name --zone=$zone"
      exit "$code"
      ;;
    143) say "stopped by the system after saving" ;; # maintenance or preemption; check the state
    *) failed "training exited with $code" ;;
  esac
done
