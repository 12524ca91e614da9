# shellcheck shell=bash
# Redis 7.0 from Debian's packages, unpacked into the cache: no root, no system service.

redis_unpack() {
  local place=$1
  (
    cd "$place" || exit 1
    if ! apt-get download redis-server redis-tools libjemalloc2 liblzf1 >download.log 2>&1; then
      if may_install; then as_root apt-get update >>download.log 2>&1 || true; fi
      apt-get download redis-server redis-tools libjemalloc2 liblzf1 >>download.log 2>&1 || {
        tail -n 5 download.log
        exit 1
      }
    fi
    for package in *.deb; do dpkg -x "$package" .; done
    rm -f -- *.deb
  )
}

redis_fetch() {
  if has redis-server && has redis-cli; then
    REDIS_SERVER=$(command -v redis-server) REDIS_CLI=$(command -v redis-cli) REDIS_LIBRARIES=
    return
  fi
  has apt-get || die "redis-server and redis-cli 7.0 or newer are needed; install them and start again"
  local place
  place=$(cached redis-7.0 redis_unpack) || return 1
  REDIS_SERVER=$place/usr/bin/redis-server REDIS_CLI=$place/usr/bin/redis-cli
  REDIS_LIBRARIES=$(echo "$place"/usr/lib/*-linux-gnu)
}

redis_cli() { env LD_LIBRARY_PATH="$REDIS_LIBRARIES" "$REDIS_CLI" "$@"; }
redis_answers() { [ "$(redis_cli -p "$1" ping)" = PONG ]; }

redis_up() {
  local folder=$1 port
  redis_fetch || return 1
  port=$(cat "$folder/port" 2>/dev/null) || port=$(free_port)
  mkdir -p "$folder"
  echo "$port" >"$folder/port"
  pid_of "$folder" >/dev/null ||
    spawn "$folder" env LD_LIBRARY_PATH="$REDIS_LIBRARIES" "$REDIS_SERVER" --port "$port" --bind 127.0.0.1 \
      --save '' --appendonly no --dir "$folder"
  wait_for redis 15 "$folder" redis_answers "$port"
}

redis_down() { halt "$1"; }
redis_env() { echo "WYD_TEST_REDIS_URL=redis://127.0.0.1:$(cat "$1/port")"; }
