#!/bin/sh
# diff.sh CATALOG BRANCH FILE: writes into FILE, as markdown, what an apply would change once this checkout is merged into BRANCH. With a token
# for a controller that is the difference to what the controller holds; without one, as for a fork, to the branch.
set -eu
PATH=$PATH:$HOME/.octavius/bin
catalog=$1 branch=origin/$2 file=$3
# What BRANCH has and this checkout has not would look as if it were taken back.
if ! git merge-base --is-ancestor "$branch" HEAD; then
  if ! git -c user.name=octavius -c user.email=octavius@localhost -c commit.gpgsign=false merge --quiet --no-edit "$branch"; then
    git merge --abort || true
    echo "this does not merge into $2: bring the branch up to date" >&2
    exit 1
  fi
fi
# A file in the repository would make it differ from its commit, so FILE is made elsewhere first.
made=$(mktemp)
trap 'rm -f "$made"' EXIT
if [ -n "${OCTAVIUS_TOKEN:-}" ] && [ -n "${OCTAVIUS_CP_HOST:-}" ]; then
  octavius diff "$catalog" --prune --output markdown --exit-zero >"$made"
else
  octavius diff "$catalog" --against "$branch" --prune --output markdown --exit-zero >"$made"
fi
cat "$made" >"$file"
# On GitHub it stands on the run's page too, which is all that a fork gets.
[ -z "${GITHUB_STEP_SUMMARY:-}" ] || cat "$made" >>"$GITHUB_STEP_SUMMARY"
