#!/bin/sh
# Export a device with the host commands that ControllerPublishVolume needs too: look what LVM has, write the export
# file durably, start the export unit, see vblade run in it. Prints the milliseconds it took.
# The file must be gone before the engine looks at its directory again.
# export.sh SHELF SLOT INTERFACE DEVICE MAC
set -eu
began=$(date +%s%N)
lvm fullreport --reportformat json --units b >/dev/null
unit=aoe-csi-export@$1.$2.service
file=/var/lib/aoe-csi/exports/$1.$2
cat > "$file" <<END
STATE=live
SHELF=$1
SLOT=$2
MACS=$5
DURABILITY=sync
DEVICE=$4
WRITABLE=yes
SERIAL=benchmark
EXPORTER=/usr/sbin/vblade
BUFFERS=16
INTERFACE=$3
END
sync "$file"
systemctl start "$unit"
until pid=$(systemctl show --property=MainPID --value "$unit") && [ "$(cat "/proc/$pid/comm")" = vblade ]; do
    sleep 0.05
done
echo $((($(date +%s%N) - began) / 1000000))
