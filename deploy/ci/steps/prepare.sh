#!/bin/sh
# prepare.sh BRANCH: makes a checkout of CI fit for octavius. Its folder may belong to another user, as in a container; its history may be cut
# off, and without it nobody can tell a merge's base, or whether a commit is older than the one that was applied last.
set -eu
branch=$1
folder=$(pwd)
git config --global --get-all safe.directory | grep -qxF "$folder" || git config --global --add safe.directory "$folder"
from=origin
# A fork's merge request runs in the fork, which need not have the branch that it goes to, or in the project where it goes, which has.
project=${CI_PROJECT_ID:-}
if [ "${CI_MERGE_REQUEST_PROJECT_ID:-$project}" != "$project" ]; then
  from=$CI_MERGE_REQUEST_PROJECT_URL.git
fi
[ "$(git rev-parse --is-shallow-repository)" = false ] || git fetch --quiet --no-tags --unshallow origin
git fetch --quiet --no-tags "$from" "+refs/heads/$branch:refs/remotes/origin/$branch"
