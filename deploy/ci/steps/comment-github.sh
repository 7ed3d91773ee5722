#!/bin/sh
# comment-github.sh CATALOG FILE STATUS COMMIT NUMBER: FILE as a comment on pull request NUMBER, whose newest commit is COMMIT; where the job's
# STATUS is not `success`, a word on that. The comment of the run before is replaced: it begins with the same marker, which has the catalogue's
# folder, because files with findings may not tell its name.
set -eu
catalog=$1 file=$2 status=$3 commit=$4 number=$5
issues=$GITHUB_API_URL/repos/$GITHUB_REPOSITORY/issues
run=$GITHUB_SERVER_URL/$GITHUB_REPOSITORY/actions/runs/$GITHUB_RUN_ID
# Others may write a comment that begins with the marker; theirs is left alone.
author=${OCTAVIUS_COMMENT_AUTHOR:-github-actions[bot]}
body=$(mktemp) answer=$(mktemp)
trap 'rm -f "$body" "$answer"' EXIT
marker="<!-- octavius:ci:$catalog -->"
{
  echo "$marker"
  if [ "$status" = success ]; then
    cat "$file"
  else
    printf '### Catalogue in `%s`\n\n**has findings, see [the run](%s)**\n' "$catalog" "$run"
  fi
  printf '\nFor commit %s.\n' "$commit"
} >"$body"
# The token goes through standard input: everyone can read the arguments of a process.
call() {
  printf 'header = "Authorization: Bearer %s"\n' "$GITHUB_TOKEN" |
    curl --config - --fail --silent --show-error --header 'Accept: application/vnd.github+json' --request "$@"
}
page=1 id=
while [ -z "$id" ]; do
  call GET "$issues/$number/comments?per_page=100&page=$page" >"$answer"
  id=$(jq --raw-output --arg marker "$marker" --arg author "$author" \
    'map(select(.user.login == $author and ((.body // "") | startswith($marker))))[0].id // empty' "$answer")
  [ "$(jq length "$answer")" -eq 100 ] || break
  page=$((page + 1))
done
jq --raw-input --slurp '{body: .}' "$body" >"$answer"
if [ -n "$id" ]; then
  call PATCH "$issues/comments/$id" --header 'Content-Type: application/json' --data-binary "@$answer" >/dev/null
else
  call POST "$issues/$number/comments" --header 'Content-Type: application/json' --data-binary "@$answer" >/dev/null
fi
