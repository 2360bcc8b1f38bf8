#!/usr/bin/env bash
# Checks that files and headings exist that documents link to, and paths and tests that they name. A name in
# backticks counts as a test if it has the form feature__property or at least three underscores.
set -euo pipefail
cd "$(dirname "$0")/.."

# The anchors of a document's headings, in the form of the usual renderers.
anchors() {
    sed -n 's/^##* //p' "$1" | tr '[:upper:]' '[:lower:]' | sed 's/[^a-z0-9 _-]//g; s/ /-/g'
}

# The link targets of a document within the project, without those in code blocks.
# shellcheck disable=SC2016 # not expansions
targets() {
    sed '/^```/,/^```/d' "$1" | grep -o '](\([^)]*\))' | sed 's/^](//; s/)$//' |
        grep -v '^[a-z]*:' || true
}

documents() {
    find . -name '*.md' -not -path './target/*' -not -path './.git/*' -not -path './.run/*' \
        -not -path './vectors/*'
}

# shellcheck disable=SC2016 # not expansions
names() {
    documents | xargs grep -hoE '`[a-z0-9]+(__?[a-z0-9]+)+`' | tr -d '`' | grep -E '__|(_.*){3}' | sort -u
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
done < <(documents)

tests=0
functions=$(grep -rhoE 'fn [a-z0-9_]+' crates fuzz --include='*.rs' | sed 's/^fn //' | sort -u)
while IFS= read -r name; do
    tests=$((tests + 1))
    if ! grep -qx -- "$name" <<<"$functions"; then
        echo "no test is called $name, which a document names" >&2
        broken=$((broken + 1))
    fi
done < <(names)

# Paths in backticks that begin with a directory of the sources.
# shellcheck disable=SC2016 # not expansions
while IFS= read -r path; do
    checked=$((checked + 1))
    if [[ ! -e $path ]]; then
        echo "there is no $path, which a document names" >&2
        broken=$((broken + 1))
    fi
done < <(documents | xargs grep -hoE '`(crates|scripts|fuzz)/[A-Za-z0-9_./-]+`' | tr -d '`' | sort -u)

echo "documents: $checked links, $tests tests named, $broken broken"
((broken == 0))
