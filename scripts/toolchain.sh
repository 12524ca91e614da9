# shellcheck shell=bash
# The tools a part needs: checked, installed where it is a Debian package we may install, else named
# with the version wanted. `need_*` notes what is missing in MISSING; `tools_present` reports it.

RUST_WANTED=1.95
GO_WANTED=1.25
JAVA_WANTED=17
MAVEN_WANTED=3.6
NODE_WANTED=20
PYTHON_WANTED=3.11

MISSING=()
missing() { MISSING+=("$1"); }

# tools_present: fails when something is missing, after saying what.
tools_present() {
  [ ${#MISSING[@]} -eq 0 ] && return
  say "this machine lacks:"
  printf '  - %s\n' "${MISSING[@]}" >&2
  return 1
}

# first_version COMMAND...: the first thing that looks like a version in the command's output.
first_version() { "$@" 2>&1 | sed 's/\x1b\[[0-9;]*m//g' | grep -oE '[0-9]+(\.[0-9]+)+|[0-9]+' | head -n 1; }

# need NAME WANTED HINT COMMAND...: COMMAND prints the version of NAME.
need() {
  local name=$1 wanted=$2 hint=$3 have
  shift 3
  if ! has "$1"; then
    missing "$name $wanted or newer: $hint"
    return
  fi
  have=$(first_version "$@") || true
  version_at_least "${have:-0}" "$wanted" || missing "$name $wanted or newer (here: ${have:-unknown}): $hint"
}

need_rust() {
  # rustup puts the tools here, but not every shell has read its profile since.
  if ! has cargo && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
  fi
  # A rustup that does not install what rust-toolchain.toml names by itself is told to.
  if has rustup && ! cargo --version >/dev/null 2>&1; then rustup toolchain install >&2 || true; fi
  need Rust "$RUST_WANTED" "https://rustup.rs installs the version that rust-toolchain.toml names" cargo --version
}

# The Rust build compiles librdkafka (C, C++ and make), AWS-LC, zlib and SQLite (C).
need_c_compiler() {
  local packages=()
  has cc || packages+=(gcc)
  has c++ || packages+=(g++)
  has make || packages+=(make)
  # libc's headers, which a bare gcc does not bring, come with g++.
  if has cc && ! echo '#include <stdlib.h>' | cc -E - >/dev/null 2>&1; then packages+=(libc6-dev); fi
  [ ${#packages[@]} -eq 0 ] && return
  apt_install "${packages[@]}" ca-certificates || missing "a C and C++ compiler and make (Debian: gcc g++ make)"
}

need_go() { need Go "$GO_WANTED" "https://go.dev/dl (builds k6 and the MongoDB stand-in)" go version; }
need_java() { need "a JDK" "$JAVA_WANTED" "Debian: openjdk-17-jdk-headless (runs Kafka)" java -version; }
need_maven() { need Maven "$MAVEN_WANTED" "Debian: maven (fetches Kafka)" mvn --version; }
need_node() {
  need Node.js "$NODE_WANTED" "https://nodejs.org (SDK and browser tests)" node --version
  has npm || missing "npm, which comes with Node.js"
}
need_python() {
  need Python "$PYTHON_WANTED" "Debian: python3 python3-venv (SDK tests)" python3 --version
  has python3 || return 0
  python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv ||
    missing "Python's venv module (Debian: python3-venv)"
}

need_shellcheck() { has shellcheck || apt_install shellcheck || missing "shellcheck (Debian: shellcheck)"; }

# Sets WYD_CHROMIUM to a Chromium or Chrome of this machine.
need_chromium() {
  local name
  for _ in first after-install; do
    for name in chromium google-chrome chromium-browser; do
      if has "$name"; then
        WYD_CHROMIUM=$(command -v "$name")
        export WYD_CHROMIUM
        return 0
      fi
    done
    apt_install chromium fonts-liberation || break
  done
  missing "Chromium or Chrome (Debian: chromium)"
}

# --- environments of packages, kept in the cache by the hash of their lock file

# node_packages FOLDER: makes FOLDER/node_modules what FOLDER/package-lock.json says.
node_packages() {
  local folder=$ROOT/$1 place
  place=$(cached "node-$(hash_of "$folder/package-lock.json")" npm_install "$folder") || return 1
  if [ "$(readlink "$folder/node_modules" 2>/dev/null)" != "$place/node_modules" ]; then
    rm -rf "$folder/node_modules"
    ln -s "$place/node_modules" "$folder/node_modules"
  fi
}
npm_install() { cp "$1/package.json" "$1/package-lock.json" "$2" && (cd "$2" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error); }

# python_packages FOLDER: prints the python that has what FOLDER/requirements.txt says.
#
# A virtual environment knows its own path, so it is made in place and marked when complete.
python_packages() {
  local requirements=$ROOT/$1/requirements.txt place
  place=$WYD_CACHE/python-$(python3 --version | tr -d ' ')-$(hash_of "$requirements")
  mkdir -p "$WYD_CACHE/locks"
  (
    flock 9
    [ -f "$place/complete" ] && exit 0
    rm -rf "$place"
    python3 -m venv "$place" >&2 && "$place/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements" >&2 &&
      : >"$place/complete"
  ) 9>"$WYD_CACHE/locks/python" || return 1
  printf '%s\n' "$place/bin/python"
}

# k6_binary: prints the path of k6, built once from scripts/k6/go.mod.
k6_binary() {
  local place
  place=$(cached "k6-$(hash_of "$ROOT/scripts/k6/go.mod" "$ROOT/scripts/k6/go.sum")" k6_build) || return 1
  printf '%s\n' "$place/k6"
}
k6_build() { (cd "$ROOT/scripts/k6" && nice -n 5 go build -trimpath -buildvcs=false -o "$1/k6" go.k6.io/k6); }
