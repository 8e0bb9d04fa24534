#!/bin/sh
# The same by `aoe-csi guest attach`, from its first word to the guest's own kernel; the export is part of it.
# guest-attach-ours.sh DOMAIN SERIAL VOLUME CONTROLLER
set -eu
aoe-python -m aoe_lab.guest ask "$1" await "$2" >/dev/null &
seen=$!
sleep 15
began=$(date +%s%N)
aoe-csi guest attach "$1" "$3" --controller "$4" >/dev/null
wait "$seen"
echo $((($(date +%s%N) - began) / 1000000))
