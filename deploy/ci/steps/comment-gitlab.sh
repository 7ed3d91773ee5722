#!/bin/sh
# comment-gitlab.sh CATALOG FILE STATUS COMMIT: FILE as a note on this pipeline's merge request, whose newest commit is COMMIT; where the job's
# STATUS is not `success`, a word on that. The note of the run before is replaced: it begins with the same marker, which has the catalogue's
# folder, because files with findings may not tell its name.
# OCTAVIUS_COMMENT_TOKEN is a project's access token with the role Reporter and the scope `api`: the token of a job may not write notes. Without
# one, as in a fork, the note goes to the job's log.
set -eu
catalog=$1 file=$2 status=$3 commit=$4
# A newer pipeline has taken over.
[ "$status" != canceled ] || exit 0
body=$(mktemp) answer=$(mktemp)
trap 'rm -f "$body" "$answer"' EXIT
marker="<!-- octavius:ci:$catalog -->"
{
  echo "$marker"
  if [ "$status" = success ]; then
    cat "$file"
  else
    printf '### Catalogue in `%s`\n\n**has findings, see [the run](%s)**\n' "$catalog" "$CI_JOB_URL"
  fi
  printf '\nFor commit %s.\n' "$commit"
} >"$body"
if [ -z "${OCTAVIUS_COMMENT_TOKEN:-}" ]; then
  echo "no OCTAVIUS_COMMENT_TOKEN, so no comment; it would be:" >&2
  cat "$body"
  exit 0
fi
notes=$CI_API_V4_URL/projects/$CI_MERGE_REQUEST_PROJECT_ID/merge_requests/$CI_MERGE_REQUEST_IID/notes
# The token goes through standard input: everyone can read the arguments of a process.
call() {
  printf 'header = "PRIVATE-TOKEN: %s"\n' "$OCTAVIUS_COMMENT_TOKEN" |
    curl --config - --fail --silent --show-error --request "$@"
}
# Others may write a note that begins with the marker; theirs is left alone.
author=$(call GET "$CI_API_V4_URL/user" | jq --raw-output .id)
page=1 id=
while [ -z "$id" ]; do
  call GET "$notes?per_page=100&page=$page" >"$answer"
  id=$(jq --raw-output --arg marker "$marker" --argjson author "$author" \
    'map(select(.author.id == $author and ((.body // "") | startswith($marker))))[0].id // empty' "$answer")
  [ "$(jq length "$answer")" -eq 100 ] || break
  page=$((page + 1))
done
jq --raw-input --slurp '{body: .}' "$body" >"$answer"
if [ -n "$id" ]; then
  call PUT "$notes/$id" --header 'Content-Type: application/json' --data-binary "@$answer" >/dev/null
else
  call POST "$notes" --header 'Content-Type: application/json' --data-binary "@$answer" >/dev/null
fi
