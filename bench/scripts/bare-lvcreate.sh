#!/bin/sh
# lvcreate and nothing around it. Prints the milliseconds it took.  bare-lvcreate.sh VG THIN_POOL NAME SIZE_BYTES
set -eu
began=$(date +%s%N)
lvcreate -qq --yes --name "$3" --virtualsize "$4b" --thinpool "$2" "$1"
echo $((($(date +%s%N) - began) / 1000000))
