#!/usr/bin/env bash
# Runs k6/chat.js against two gateways that share Redis.
#
#   scripts/k6.sh FOLDER     logs and the summary go there; reads WYD_BIN and WYD_TEST_REDIS_URL
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
# shellcheck source=scripts/toolchain.sh
. scripts/toolchain.sh

: "${WYD_BIN:?is the path of the wyd binary}" "${WYD_TEST_REDIS_URL:?is the URL of a Redis}"
folder=$1
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
k6=$(k6_binary)

# status PORT PATH: the HTTP status of a GET on this machine.
status() {
  local line
  (
    exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
    printf 'GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n' "$2" >&3
    read -r -t 5 line <&3
    echo "$line" | cut -d' ' -f2
  ) 2>/dev/null
}
is_ready() { [ "$(status "$1" /readyz)" = 200 ]; }

stop() {
  halt "$folder/gateway-1"
  halt "$folder/gateway-2"
}
trap stop EXIT
trap 'exit 130' INT TERM

JWT_SECRET=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export JWT_SECRET
urls=()
for number in 1 2; do
  here=$folder/gateway-$number
  mkdir -p "$here"
  public=$(free_port)
  internal=$(free_port)
  cat >"$here/wyd.toml" <<SETTINGS
listen = "127.0.0.1:$public"
internal_listen = "127.0.0.1:$internal"

[broker]
kind = "redis"

[drain]
delay = "0s"
duration = "200ms"

[namespaces.chat]
presence = true
history_size = 100
history_ttl = "5m"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_subscriber = true
SETTINGS
  spawn "$here" env REDIS_URL="$WYD_TEST_REDIS_URL" "$WYD_BIN" gateway --config "$here/wyd.toml"
  wait_for "gateway $number" 30 "$here" is_ready "$internal"
  urls+=("ws://127.0.0.1:$public/connection/websocket")
done

WYD_URLS=$(
  IFS=,
  echo "${urls[*]}"
) WYD_TOKEN_SECRET=$JWT_SECRET "$k6" run --quiet --no-usage-report --no-color --summary-export "$folder/summary.json" k6/chat.js
