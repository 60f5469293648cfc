#!/usr/bin/env bash
# Train on the GPUs of several Kubernetes nodes; JobSet restarts it after preemption.
#
#   launch/kubernetes/launch.sh --name=resnet50 --image=IMAGE --claim=PVC \
#     --config=configs/resnet50.py --workdir=/shared/runs/resnet50 [--config.FIELD=VALUE ...]
#
#   --name=NAME       name of the JobSet: lower-case letters, digits and -
#   --image=IMAGE     built from launch/kubernetes/Dockerfile
#   --claim=PVC       ReadWriteMany volume claim for data and workdir, mounted at /shared
#   --nodes=N         (default 2)      --gpus=N   per node (default 8)
#   --namespace=NAME  --context=NAME   passed to kubectl
#   --dry_run         print the manifest and the command without applying it
#
# All other flags go to `python -m imagenet_jax.main`.
set -euo pipefail

name="" image="" claim="" nodes=2 gpus=8 dry_run="" kubectl=(kubectl) arguments=()
for argument in "$@"; do
  value=${argument#*=}
  case $argument in
    --name=*) name=$value ;;
    --image=*) image=$value ;;
    --claim=*) claim=$value ;;
    --nodes=*) nodes=$value ;;
    --gpus=*) gpus=$value ;;
    --namespace=* | --context=*) kubectl+=("$argument") ;;
    --dry_run) dry_run=yes ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) arguments+=("$argument") ;;
  esac
done
fail() {
  echo "error: $1" >&2
  exit 1
}
# Pods are named NAME-workers-0-I; names must not exceed a DNS label of 63 characters.
[[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
  fail "--name=$name: up to 40 lower-case letters, digits and -, a letter first"
[[ $image =~ ^[A-Za-z0-9._/:@-]+$ ]] || fail "--image=$image: the image to run, NAME:TAG"
[[ $claim =~ ^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$ ]] ||
  fail "--claim=$claim: the name of a ReadWriteMany volume claim"
[[ $nodes =~ ^[1-9][0-9]*$ ]] || fail "--nodes=$nodes is not a number above 0"
[[ $gpus =~ ^[1-9][0-9]*$ ]] || fail "--gpus=$gpus is not a number above 0"

list="" # a JSON array of strings, which is also YAML
for argument in ${arguments[@]+"${arguments[@]}"}; do
  [[ $argument != *[[:cntrl:]]* ]] || fail "a control character in $(printf %q "$argument")"
  argument=${argument//\\/\\\\}
  argument=${argument//\"/\\\"}
  argument=${argument//\$(/\$\$(} # Kubernetes would expand $(NAME)
  list+="${list:+, }\"$argument\""
done

manifest=$(< "$(dirname "$0")/jobset.yaml")
fill() { # replace ${$1} by $2; the quotes keep & and \ in $2 literal
  manifest=${manifest//"\${$1}"/"$2"}
}
fill NAME "$name"
fill IMAGE "$image"
fill CLAIM "$claim"
fill NODES "$nodes"
fill GPUS "$gpus"
fill ARGUMENTS "[$list]"

if [[ $dry_run ]]; then
  echo "$manifest"
  echo "# would go to: ${kubectl[*]} create --filename=-"
  exit 0
fi
"${kubectl[@]}" create --filename=- <<< "$manifest"
echo "watch: ${kubectl[*]} logs --follow --selector=jobset.sigs.k8s.io/jobset-name=$name,\
batch.kubernetes.io/job-completion-index=0"
echo "stop:  ${kubectl[*]} delete jobset $name"
