#!/usr/bin/env bash
# Brings the real services up on free ports of this machine, and down again.
#
#   scripts/services.sh up|down|status|env [--dir FOLDER] [redis postgres kafka mongo s3]
#
# FOLDER (default .run/services) holds data, logs and pids; one folder is one set of services, and
# any number of sets run side by side. `up` starts what is not running; `env` prints the variables
# the tests read, as `export NAME=value` lines.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
for service in redis postgres kafka mongo s3; do
  # shellcheck source=/dev/null
  . "scripts/services/$service.sh"
done

usage() { sed -n '2,8s/^# \{0,1\}//p' "$0"; }

verb=${1:-}
[ $# -gt 0 ] && shift
folder=$ROOT/.run/services
names=()
while [ $# -gt 0 ]; do
  case $1 in
    --dir)
      mkdir -p "$2"
      folder=$(cd "$2" && pwd)
      shift
      ;;
    redis | postgres | kafka | mongo | s3) names+=("$1") ;;
    *)
      usage >&2
      exit 2
      ;;
  esac
  shift
done
# mongo lives in postgres, so it is last to start and first to stop.
[ ${#names[@]} -gt 0 ] || names=(redis kafka postgres mongo s3)

up() {
  local name pids=() failed=0 begun=$SECONDS
  mkdir -p "$folder"
  for name in "${names[@]}"; do
    (
      "${name}_up" "$folder/$name" || exit 1
      say "$name is ready after $((SECONDS - begun)) s"
    ) &
    pids+=("$!")
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return $failed
}

down() {
  local index
  for ((index = ${#names[@]} - 1; index >= 0; index--)); do
    "${names[index]}_down" "$folder/${names[index]}"
  done
}

environment() {
  local name
  for name in "${names[@]}"; do
    if [ -f "$folder/$name/port" ]; then echo "export $("${name}_env" "$folder/$name")"; fi
  done
}

status() {
  local name pid
  for name in "${names[@]}"; do
    if [ -f "$folder/$name/port" ] && port_is_open "$(cat "$folder/$name/port")"; then
      echo "$name: port $(cat "$folder/$name/port")"
    else
      echo "$name: down"
    fi
  done
}

case $verb in
  up) up ;;
  down) down ;;
  env) environment ;;
  status) status ;;
  -h | --help | help) usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
