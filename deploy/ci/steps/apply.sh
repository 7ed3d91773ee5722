#!/bin/sh
# apply.sh CATALOG: makes the controller hold what was merged. A removal has been reviewed like everything else, so it is carried out, up to
# what --max-deletions allows by itself. An older commit than the one applied last is refused: a run that comes late does not undo a later merge.
set -eu
PATH=$PATH:$HOME/.octavius/bin
octavius apply "$1" --prune --yes --require-clean
