# shellcheck shell=bash
# What the parts of ./test do. Each runs in a shell of its own, with its output in $RUN/PART.log, and
# fails when it returns anything but 0.

# step NAME COMMAND...: counts as one test.
step() {
  local name=$1
  shift
  echo "--- $name"
  if "$@"; then echo "step $name: passed"; else
    echo "step $name: failed"
    STEP_FAILED=1
  fi
}

part_lint() {
  STEP_FAILED=
  step format cargo fmt --all --check -- --color=never
  step clippy cargo clippy --workspace --all-targets --locked -- -D warnings
  # Cheap: the dependencies' metadata is already there from clippy.
  step rustdoc env RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --document-private-items --locked
  step shellcheck shellcheck -x test run .ci/run scripts/*.sh scripts/services/*.sh
  step links scripts/check-links
  [ -z "$STEP_FAILED" ]
}

part_unit() { cargo test --workspace --lib --bins --locked --no-fail-fast; }

# Every file in a crate's tests/ but the main job, which is a part of its own.
part_services() {
  local file name names=() seen=' '
  for file in */tests/*.rs */tests/*/main.rs; do
    [ -f "$file" ] || continue
    case $file in
      */main.rs) name=$(basename "$(dirname "$file")") ;;
      *) name=$(basename "$file" .rs) ;;
    esac
    case "$seen" in *" $name "*) continue ;; esac
    seen="$seen$name "
    [ "$name" = main_job ] || names+=(--test "$name")
  done
  if [ ${#names[@]} -eq 0 ]; then
    echo "no integration tests yet"
    return 0
  fi
  cargo test --workspace --locked --no-fail-fast "${names[@]}"
}

part_main() { cargo test --workspace --locked --test main_job -- --nocapture; }

part_sdk() {
  local python failed=0
  node_packages tests/sdk/js && (cd tests/sdk/js && npm test --silent) || failed=1
  python=$(python_packages tests/sdk/python) && (cd tests/sdk/python && "$python" -m pytest -p no:cacheprovider) || failed=1
  return $failed
}

part_browser() {
  node_packages tests/browser || return 1
  export WYD_SCREENSHOTS=$RUN/screenshots
  mkdir -p "$WYD_SCREENSHOTS"
  (cd tests/browser && npm test --silent)
}

# Alone on the machine, or the figures say little.
part_bench() {
  cargo test --workspace --locked --release --test throughput -- --ignored --nocapture --test-threads 1
}

part_k6() {
  STEP_FAILED=
  step k6 scripts/k6.sh "$RUN/k6"
  [ -z "$STEP_FAILED" ]
}
