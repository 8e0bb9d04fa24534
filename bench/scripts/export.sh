#!/bin/sh
# Export a device by hand: look what LVM has, start a unit with vblade, see it run. Prints the milliseconds it took.
# export.sh SHELF SLOT INTERFACE DEVICE MAC [bare]      (bare: do not look)
set -eu
began=$(date +%s%N)
[ "${6:-}" = bare ] || lvm fullreport --reportformat json --units b >/dev/null
unit=bench-export-$1-$2
systemd-run --quiet --collect "--unit=$unit" --property=Type=exec -- vblade -s -b 16 -m "$5" "$1" "$2" "$3" "$4"
until [ "$(systemctl show --property=ActiveState --value "$unit")" = active ]; do sleep 0.05; done
echo $((($(date +%s%N) - began) / 1000000))
