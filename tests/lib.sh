# What tests/run and .ci/run share: the cache folder, Debian packages, Rust tools. Sourced, not run.

export OCTAVIUS_CACHE="${OCTAVIUS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/octavius}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$OCTAVIUS_CACHE/target}"
export PATH="$OCTAVIUS_CACHE/tools/bin:$PATH"
mkdir -p "$OCTAVIUS_CACHE"

step() { printf '\n== %s\n' "$*"; }

# Debian packages that the build and the tests need; installed where they are missing and we may.
have_packages() {
  local missing=() package
  for package in gcc git cmake pkg-config; do
    dpkg -s "$package" >/dev/null 2>&1 || command -v "$package" >/dev/null 2>&1 || missing+=("$package")
  done
  [ "${#missing[@]}" -eq 0 ] && return
  if [ "$(id -u)" -ne 0 ]; then
    echo "missing packages, install them as root: apt-get install ${missing[*]}" >&2
    exit 2
  fi
  apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# A Rust tool by its name and a version that is known to work; built once, without the long optimisation, and kept in the cache.
have_tool() {
  local name=$1 version=$2
  command -v "$name" >/dev/null 2>&1 && return
  CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_TARGET_DIR="$OCTAVIUS_CACHE/tools-target" \
    cargo install "$name" --version "^$version" --locked --quiet --root "$OCTAVIUS_CACHE/tools"
}
