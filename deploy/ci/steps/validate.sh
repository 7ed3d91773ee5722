#!/bin/sh
# validate.sh CATALOG: every finding in the catalogue's files; on GitHub they stand at their lines in the pull request.
set -eu
PATH=$PATH:$HOME/.octavius/bin
if [ "${GITHUB_ACTIONS:-}" = true ]; then
  octavius validate "$1" --output github
else
  octavius validate "$1"
fi
