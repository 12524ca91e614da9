# shellcheck shell=bash
# Words the scripts share: messages, the cache, free ports, background processes, packages.
# Sourced by ./test, ./run and everything in this folder; it changes nothing by being sourced.

# shellcheck disable=SC2034 # Read by those who source this.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
WYD_CACHE=${WYD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/wyd}
# Another checkout on this machine reuses the compiled dependencies.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$WYD_CACHE/target}

say() { printf '%s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

# version_at_least HAVE WANT: true when HAVE is WANT or newer.
version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# hash_of FILE...: a short name for the content of the files, used as a cache key.
hash_of() { cat "$@" | sha256sum | cut -c1-12; }

# cached NAME BUILD...: the folder $WYD_CACHE/NAME, printed; made once by `BUILD... FOLDER`.
#
# The folder is built beside its place and renamed into it, so a broken build leaves nothing that
# looks finished; the lock lets two checkouts ask for the same thing at the same time.
cached() {
  local name=$1 place=$WYD_CACHE/$1 temporary
  shift
  mkdir -p "$WYD_CACHE/locks"
  (
    flock 9
    [ -d "$place" ] && exit 0
    temporary=$(mktemp -d "$WYD_CACHE/making.XXXXXX")
    chmod 755 "$temporary"
    trap 'rm -rf "$temporary"' EXIT
    "$@" "$temporary" >&2 && mv "$temporary" "$place"
  ) 9>"$WYD_CACHE/locks/$name" || return 1
  printf '%s\n' "$place"
}

port_is_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# free_port: a port nobody listens on, promised to the caller for the next minutes.
#
# Below 32768, where Linux takes the ports of outgoing connections from. The promise is a file in
# the cache: a second copy of the tests, started at the same moment, picks another port.
free_port() {
  mkdir -p "$WYD_CACHE/ports"
  (
    flock 9
    find "$WYD_CACHE/ports" -type f -name '[0-9]*' -mmin +10 -delete
    while :; do
      port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
      [ -e "$WYD_CACHE/ports/$port" ] && continue
      port_is_open "$port" && continue
      : >"$WYD_CACHE/ports/$port"
      printf '%s\n' "$port"
      break
    done
  ) 9>"$WYD_CACHE/ports/lock"
}

# --- background processes: found again by pid and start time, so that a pid used a second time by
# --- the system is never mistaken for ours.

started_at() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# spawn FOLDER COMMAND...: starts COMMAND in a session of its own; FOLDER gets `pid` and `log`.
spawn() {
  local folder=$1 pid
  shift
  mkdir -p "$folder"
  setsid "$@" >"$folder/log" 2>&1 </dev/null 9>&- &
  pid=$!
  printf '%s %s\n' "$pid" "$(started_at "$pid")" >"$folder/pid"
}

# pid_of FOLDER: the pid of what was spawned there, if it still runs.
pid_of() {
  local pid start
  read -r pid start 2>/dev/null <"$1/pid" || return 1
  [ -n "$start" ] && [ "$(started_at "$pid")" = "$start" ] && printf '%s\n' "$pid"
}

# halt FOLDER: SIGTERM, ten seconds' grace, SIGKILL.
halt() {
  local pid
  pid=$(pid_of "$1") || {
    rm -f "$1/pid"
    return 0
  }
  kill "$pid" 2>/dev/null || true
  for _ in $(seq 100); do
    pid_of "$1" >/dev/null || break
    sleep 0.1
  done
  if pid_of "$1" >/dev/null; then kill -9 "$pid" 2>/dev/null || true; fi
  rm -f "$1/pid"
}

# wait_for WHAT SECONDS FOLDER CHECK...: until CHECK succeeds; fails early when the process is gone.
wait_for() {
  local what=$1 end=$((SECONDS + $2)) folder=$3
  shift 3
  until "$@" >/dev/null 2>&1; do
    if [ -e "$folder/pid" ] && ! pid_of "$folder" >/dev/null; then
      say "$what ended while starting; the end of $folder/log:"
      tail -n 20 "$folder/log" >&2
      return 1
    fi
    if [ "$SECONDS" -ge "$end" ]; then
      say "$what was not ready in time; the end of $folder/log:"
      tail -n 20 "$folder/log" >&2
      return 1
    fi
    sleep 0.1
  done
}

# --- Debian packages

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}
may_install() { has apt-get && { [ "$(id -u)" = 0 ] || { has sudo && sudo -n true 2>/dev/null; }; }; }

# apt_install PACKAGE...: installs them, or says what to install and fails.
apt_install() {
  if ! may_install; then
    say "missing packages; install them and start again:  apt-get install $*"
    return 1
  fi
  say "installing: $*"
  local log
  log=$(mktemp)
  # A fresh machine has no package lists, and old lists name packages the mirror no longer has.
  if apt_once "$@" >"$log" 2>&1 || { as_root apt-get update >>"$log" 2>&1 && apt_once "$@" >>"$log" 2>&1; }; then
    rm -f "$log"
  else
    tail -n 20 "$log" >&2
    rm -f "$log"
    say "apt-get install $* failed"
    return 1
  fi
}
apt_once() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"
}
