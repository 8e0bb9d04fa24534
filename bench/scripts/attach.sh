#!/bin/sh
# Attach an ext4 export with the host commands that NodeStageVolume needs too: pin its card in the ingress rules,
# discover, wait for the device, see what is on it, check it, mount it, grow it. Prints the milliseconds it took.
# The pin must outlive the mount.  attach.sh SHELF SLOT DIRECTORY INTERFACE MAC
set -eu
device=/dev/etherd/e$1.$2
place=$(printf '0x%04x%02x' "$1" "$2")
began=$(date +%s%N)
nft -j list ruleset netdev >/dev/null
echo "add element netdev aoe_csi pins_$4 { $5 . $place }" | nft -f -
looks=0
until [ -b "$device" ] && [ "$(blockdev --getsize64 "$device" 2>/dev/null || echo 0)" -gt 0 ]; do
    # A query may be lost, or too early: ask again every half second.
    [ $((looks % 10)) -ne 0 ] || echo > /dev/etherd/discover
    looks=$((looks + 1))
    sleep 0.05
done
blockdev --setrw "$device"
blkid -p -o export "$device" >/dev/null
e2fsck -p "$device" >/dev/null
mkdir -p "$3"
mount "$device" "$3"
resize2fs "$device" >/dev/null 2>&1
echo $((($(date +%s%N) - began) / 1000000))
