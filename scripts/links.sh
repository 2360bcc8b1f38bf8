#!/usr/bin/env bash
# Checks that what the documents link to within the project is there: files, and headings in them.
set -euo pipefail
cd "$(dirname "$0")/.."

# The anchors of a document's headings, as the usual renderers make them.
anchors() {
    sed -n 's/^##* //p' "$1" | tr '[:upper:]' '[:lower:]' | sed 's/[^a-z0-9 _-]//g; s/ /-/g'
}

# What a document links to within the project; code blocks are no links.
# shellcheck disable=SC2016 # these are no expansions
targets() {
    sed '/^```/,/^```/d' "$1" | grep -o '](\([^)]*\))' | sed 's/^](//; s/)$//' |
        grep -v '^[a-z]*:' || true
}

checked=0
broken=0
while IFS= read -r doc; do
    while IFS= read -r target; do
        file=${target%%#*}
        where=$doc
        if [[ -n $file ]]; then where=$(dirname "$doc")/$file; fi
        checked=$((checked + 1))
        if [[ ! -e $where ]]; then
            echo "$doc: there is no $target" >&2
            broken=$((broken + 1))
        elif [[ $target == *'#'* ]] && ! anchors "$where" | grep -qx -- "${target#*#}"; then
            echo "$doc: there is no heading $target" >&2
            broken=$((broken + 1))
        fi
    done < <(targets "$doc")
done < <(find . -name '*.md' -not -path './target/*' -not -path './.git/*' -not -path './.run/*')
echo "links: $checked checked, $broken broken"
((broken == 0))
