#!/bin/sh
# runc, asked for no capability that this machine does not have: `docker run --privileged` asks for all that the kernel knows,
# and where one is missing nothing would start. Docker's runtime in kind.sh.
set -eu

have=$(setpriv --dump | sed -n 's/^Capability bounding set: //p' | tr a-z, 'A-Z\n' | sed 's/.*/"CAP_&"/' | paste -sd ,)
bound() { # file filter
    jq --argjson have "[$have]" "$2" "$1" >"$1.bounded"
    mv "$1.bounded" "$1"
}
process='if .capabilities then .capabilities |= map_values(map(select(IN($have[])))) else . end
    | if (.oomScoreAdj // 0) < 0 then .oomScoreAdj = 0 else . end'

previous=
for argument in "$@"; do
    case $previous in
    --bundle | -b) bound "$argument/config.json" ".process |= ($process)" ;;
    --process | -p) bound "$argument" "$process" ;;
    esac
    previous=$argument
done
exec runc "$@"
