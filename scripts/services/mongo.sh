# shellcheck shell=bash
# MongoDB's wire protocol by FerretDB 1.24 over the PostgreSQL started beside it. It has no
# transactions, TTL indexes or change streams; wyd relies on none of them.

FERRETDB=$ROOT/scripts/services/ferretdb

mongo_build() {
  local temporary=$1
  (cd "$FERRETDB" && nice -n 5 env GOFLAGS=-buildvcs=false go build -trimpath -o "$temporary/ferretdb" .)
}

mongo_fetch() {
  FERRETDB_BIN=$(cached "ferretdb-$(hash_of "$FERRETDB/go.mod" "$FERRETDB/go.sum" "$FERRETDB/main.go")" mongo_build)/ferretdb
  [ -x "$FERRETDB_BIN" ]
}

mongo_up() {
  local folder=$1 port postgres_port
  mongo_fetch || return 1
  mkdir -p "$folder"
  # postgres starts at the same time, in the folder beside this one; its log says why if it does not.
  postgres_fetch || return 1
  wait_for "postgres (for mongo)" 120 "$folder" mongo_postgres "$folder/../postgres/port" || return 1
  postgres_port=$(cat "$folder/../postgres/port")
  [ "$(postgres_sql "$postgres_port" "select 1 from pg_database where datname = 'ferretdb'")" = 1 ] ||
    postgres_sql "$postgres_port" 'create database ferretdb' || return 1
  port=$(cat "$folder/port" 2>/dev/null) || port=$(free_port)
  echo "$port" >"$folder/port"
  pid_of "$folder" >/dev/null ||
    spawn "$folder" "$FERRETDB_BIN" -listen "127.0.0.1:$port" -postgres "postgres://wyd@127.0.0.1:$postgres_port/ferretdb"
  wait_for mongo 30 "$folder" port_is_open "$port"
}
mongo_postgres() { [ -s "$1" ] && postgres_sql "$(cat "$1")" 'select 1'; }

mongo_down() { halt "$1"; }
mongo_env() { echo "WYD_TEST_MONGO_URL=mongodb://127.0.0.1:$(cat "$1/port")/wyd"; }
