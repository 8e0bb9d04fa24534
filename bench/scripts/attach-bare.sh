#!/bin/sh
# Attach an export as somebody would who takes the first disk that comes: discover, wait for the device, mount.
# Prints the milliseconds it took.  attach-bare.sh SHELF.SLOT DIRECTORY      (no directory: attach only)
set -eu
device=/dev/etherd/e$1
began=$(date +%s%N)
looks=0
until [ -b "$device" ] && [ "$(blockdev --getsize64 "$device" 2>/dev/null || echo 0)" -gt 0 ]; do
    # A query may be lost, or too early: ask again every half second.
    [ $((looks % 10)) -ne 0 ] || echo > /dev/etherd/discover
    looks=$((looks + 1))
    sleep 0.05
done
if [ -n "${2:-}" ]; then
    mkdir -p "$2"
    mount "$device" "$2"
fi
echo $((($(date +%s%N) - began) / 1000000))
