#!/bin/sh
# install.sh: sees to it that there is an octavius: the one on the path, or one in ~/.octavius/bin. Where machines outlive their runs, any run may
# have left something in that folder: it counts only where its SHA-256 is $OCTAVIUS_SHA256, and is replaced from $OCTAVIUS_DOWNLOAD otherwise.
set -eu
program=$HOME/.octavius/bin/octavius
is_named() {
  [ -f "$1" ] && echo "${OCTAVIUS_SHA256:-}  $1" | sha256sum --check --status -
}
found=$(command -v octavius || true)
# The path may have that folder already.
if [ -n "$found" ] && ! [ "$found" -ef "$program" ]; then
  exec "$found" --version
fi
if ! is_named "$program"; then
  if [ -z "${OCTAVIUS_DOWNLOAD:-}" ] || [ -z "${OCTAVIUS_SHA256:-}" ]; then
    echo "no octavius on the path: set OCTAVIUS_DOWNLOAD to its URL and OCTAVIUS_SHA256 to its checksum" >&2
    exit 1
  fi
  mkdir -p "$HOME/.octavius/bin"
  made=$(mktemp "$HOME/.octavius/bin/download.XXXXXX")
  trap 'rm -f "$made"' EXIT
  curl --fail --silent --show-error --location --output "$made" "$OCTAVIUS_DOWNLOAD"
  if ! is_named "$made"; then
    echo "what OCTAVIUS_DOWNLOAD names has another SHA-256 than OCTAVIUS_SHA256" >&2
    exit 1
  fi
  chmod 755 "$made"
  [ ! -d "$program" ] || rm -rf "$program"
  mv -f "$made" "$program"
fi
"$program" --version
