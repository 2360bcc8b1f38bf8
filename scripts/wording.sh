#!/usr/bin/env bash
# Counts words that usually hide a standard term, in 1,000 lines of documents, comments and messages.
# Fails above the limit. Terms are in docs/glossary.md, which quotes these words and is not counted;
# neither is generated code.
set -euo pipefail
cd "$(dirname "$0")/.."

limit=12
words='whoever|whomever|somebody|nobody|anew|goes on|so many|hence|beside|is no|are no|what is|what was'
words+='|what comes|what came|what goes|what waits|who is|who has|who does|in vain|makes way|of its own'
words+='|a place of|as they stand|meanwhile|thereby|wherever|by itself|told|tells'

files() {
    find . \( -name target -o -name .git -o -name .run -o -name vectors -o -name corpus \) -prune \
        -o -type f -name "$1" ! -path ./docs/glossary.md ! -name compiled.rs -print0
}

# In code: comments, and lines with a string.
prose() {
    files '*.rs' | xargs -0 grep -hE '^[[:space:]]*//|"'
    { files '*.md' && files '*.proto'; } | xargs -0 grep -hE '[^[:space:]]'
}

lines=$(prose | wc -l)
hits=$(prose | grep -oiwE "$words" | wc -l)
rate=$((hits * 1000 / lines))
echo "wording: $hits marker words in $lines lines, $rate per 1,000 (limit $limit)"
if ((rate > limit)); then
    echo "replace them by the terms of docs/glossary.md; to list them: grep -rniwE '$words'" >&2
    exit 1
fi
