# shellcheck shell=bash
# PostgreSQL from Debian's packages, as a private server. It refuses to run as root, so root hands
# it to `nobody`. Synchronous writes are off: these servers are thrown away after the run.

postgres_fetch() {
  PG_BIN=$(postgres_binaries) && return
  if has apt-get && may_install; then
    # The package would otherwise make and start a cluster of its own on port 5432.
    as_root mkdir -p /etc/postgresql-common/createcluster.d
    echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.d/no-main.conf >/dev/null
  fi
  apt_install postgresql || return 1
  PG_BIN=$(postgres_binaries) || die "the postgresql package brought no /usr/lib/postgresql/*/bin/initdb"
}

# The newest server installed; a `postgres` in PATH may be anything.
postgres_binaries() {
  local found
  found=$(printf '%s\n' /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)
  [ -x "$found" ] && dirname "$found"
}

postgres_user() {
  if [ "$(id -u)" = 0 ]; then
    # From /: nobody may not be able to stand in the current folder.
    (cd / && exec setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups "$@")
  else
    "$@"
  fi
}

# The data's folder: in the run folder where nobody can reach it, else under /tmp.
postgres_place() {
  local folder=$1
  if [ -s "$folder/place" ]; then
    cat "$folder/place"
    return
  fi
  mkdir -p "$folder/data-root"
  local place=$folder/data-root
  if [ "$(id -u)" = 0 ]; then
    chown nobody "$place"
    if ! postgres_user test -w "$place"; then
      place=$(mktemp -d "${TMPDIR:-/tmp}/wyd-postgres.XXXXXX")
      chown nobody "$place"
    fi
  fi
  echo "$place" | tee "$folder/place"
}

postgres_sql() { "$PG_BIN/psql" -h 127.0.0.1 -p "$1" -U wyd -d postgres -qAtc "$2"; }

postgres_up() {
  local folder=$1 place port
  postgres_fetch || return 1
  mkdir -p "$folder"
  place=$(postgres_place "$folder")
  port=$(cat "$folder/port" 2>/dev/null) || port=$(free_port)
  echo "$port" >"$folder/port"
  if [ ! -f "$place/data/PG_VERSION" ]; then
    postgres_user "$PG_BIN/initdb" -D "$place/data" -U wyd -A trust --no-locale -E UTF8 --no-sync >"$folder/initdb.log" 2>&1 || {
      tail -n 20 "$folder/initdb.log" >&2
      return 1
    }
  fi
  "$PG_BIN/pg_isready" -q -h 127.0.0.1 -p "$port" ||
    postgres_user "$PG_BIN/pg_ctl" -D "$place/data" -w -t 60 -l "$place/log" -o "-p $port \
      -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections=300 \
      -c fsync=off -c synchronous_commit=off -c full_page_writes=off" start >"$folder/log" 2>&1 9>&- || {
      tail -n 20 "$place/log" >&2
      return 1
    }
  wait_for postgres 30 "$folder" postgres_sql "$port" 'select 1'
}

postgres_down() {
  local place
  place=$(cat "$1/place" 2>/dev/null) || return 0
  PG_BIN=$(postgres_binaries) || return 0
  if [ -f "$place/data/postmaster.pid" ]; then
    postgres_user "$PG_BIN/pg_ctl" -D "$place/data" -m immediate -t 30 stop >/dev/null 2>&1 || true
  fi
  # Only the folder under /tmp: the run folder goes with its owner.
  case $place in "$1"/*) ;; *) rm -rf "$place" "$1/place" ;; esac
}
postgres_env() { echo "WYD_TEST_DATABASE_URL=postgres://wyd@127.0.0.1:$(cat "$1/port")/postgres"; }
