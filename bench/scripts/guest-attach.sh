#!/bin/sh
# Give an export to a running guest with the host commands that `aoe-csi guest attach` needs too: pin its card in the
# ingress rules, discover, wait for the device, link it, and attach it live and persistently. Ends when the guest's own
# kernel has the disk; prints the milliseconds it took.  guest-attach.sh DOMAIN SERIAL SHELF SLOT INTERFACE MAC
set -eu
domain=$1 serial=$2 device=/dev/etherd/e$3.$4
place=$(printf '0x%04x%02x' "$3" "$4")
aoe-python -m aoe_lab.guest ask "$domain" await "$serial" >/dev/null &
seen=$!
# Python starts slowly where it is emulated, and the question is not what is measured.
sleep 15
began=$(date +%s%N)
nft -j list ruleset netdev >/dev/null
echo "add element netdev aoe_csi pins_$5 { $6 . $place }" | nft -f -
looks=0
until [ -b "$device" ] && [ "$(blockdev --getsize64 "$device" 2>/dev/null || echo 0)" -gt 0 ]; do
    # A query may be lost, or too early: ask again every half second.
    [ $((looks % 10)) -ne 0 ] || echo > /dev/etherd/discover
    looks=$((looks + 1))
    sleep 0.05
done
blockdev --setrw "$device"
mkdir -p /run/bench-disks
ln -sfn "$device" "/run/bench-disks/$serial"
chmod o+x /run/bench-disks
cat > /run/bench-disk.xml <<XML
<disk type='block' device='disk'>
  <driver name='qemu' type='raw' cache='none' io='native' error_policy='stop' rerror_policy='stop'/>
  <source dev='/run/bench-disks/$serial'/><target dev='vdb' bus='virtio'/><serial>$serial</serial>
  <alias name='ua-bench-$serial'/>
</disk>
XML
virsh -q attach-device "$domain" /run/bench-disk.xml --live --config >/dev/null
wait "$seen"
echo $((($(date +%s%N) - began) / 1000000))
