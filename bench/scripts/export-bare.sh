#!/bin/sh
# Export a device and nothing else: a unit with vblade in it. Prints the milliseconds it took.
# export-bare.sh SHELF SLOT INTERFACE DEVICE MAC
set -eu
began=$(date +%s%N)
unit=bench-export-$1-$2
systemd-run --quiet --collect "--unit=$unit" --property=Type=exec -- vblade -s -b 16 -m "$5" "$1" "$2" "$3" "$4"
until [ "$(systemctl show --property=ActiveState --value "$unit")" = active ]; do sleep 0.05; done
echo $((($(date +%s%N) - began) / 1000000))
