#!/bin/sh
# What CreateVolume of a thin volume does to its host, and nothing else: one report, lvcreate, and the tag that says
# that the volume is ready. Prints the milliseconds it took.  create-volume.sh VG THIN_POOL NAME SIZE_BYTES
set -eu
vg=$1 pool=$2 name=$3 size=$4
change() {
    systemd-run --quiet --collect --wait --pipe "--unit=bench-lvm-$name" --setenv=LC_ALL=C -- "$@" >/dev/null
}
began=$(date +%s%N)
lvm fullreport --reportformat json --units b --nosuffix --foreign \
    --configreport vg -o vg_name,vg_uuid,vg_size,vg_free,vg_extent_size,vg_systemid,vg_attr,vg_missing_pv_count \
    --configreport lv -o lv_name,lv_size,lv_tags,lv_layout,pool_lv,origin,lv_active,data_percent,metadata_percent \
    --configreport pv -o pv_name --configreport pvseg -o pv_name --configreport seg -o lv_name,zero >/dev/null
change lvcreate --yes --name "$name" --virtualsize "${size}b" --thinpool "$pool" --addtag bench.new "$vg"
change lvchange --deltag bench.new --addtag bench.ready "$vg/$name"
echo $((($(date +%s%N) - began) / 1000000))
