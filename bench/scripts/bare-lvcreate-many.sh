#!/bin/sh
# Many lvcreate, so many at a time, and nothing around them. Prints the milliseconds that all took.
# bare-lvcreate-many.sh VG THIN_POOL PREFIX SIZE_BYTES COUNT AT_A_TIME
set -eu
began=$(date +%s%N)
seq "$5" | xargs -P "$6" -I{} lvcreate -qq --yes --name "$3{}" --virtualsize "$4b" --thinpool "$2" "$1"
echo $((($(date +%s%N) - began) / 1000000))
