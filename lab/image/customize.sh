#!/bin/sh
# Turns a fresh Debian tree into a lab machine. mmdebstrap runs it on the host with the tree as $1.
set -eu
root=$1
here=$(dirname "$0")

cp -r --no-preserve=ownership,timestamps "$here/rootfs/." "$root/"
mkdir -p "$root/opt/aoe-csi/src" "$root/opt/aoe-csi/tools"

# The guest's first process writes these at every boot.
rm -f "$root/etc/hostname"
: > "$root/etc/machine-id"

# vblade exports all it finds configured, and aoetools loads the initiator without options: both are the project's to start.
ln -sf /dev/null "$root/etc/modules-load.d/aoetools.conf"

chroot "$root" systemctl --quiet enable lab-ready.service
# Only for machines that join a cluster.
chroot "$root" systemctl --quiet disable containerd.service

# Each remote command starts a shell: the small one.
chroot "$root" usermod --shell /bin/sh root

# Nobody logs in on a screen, nothing is upgraded, and an emulated processor pays dearly for each process started at boot.
chroot "$root" systemctl --quiet mask \
    vblade.service aoetools.service \
    getty@.service serial-getty@.service console-getty.service getty-static.service getty.target \
    systemd-ask-password-wall.path systemd-ask-password-console.path systemd-user-sessions.service systemd-logind.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    systemd-tmpfiles-clean.timer systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-pstore.service \
    systemd-random-seed.service systemd-binfmt.service systemd-firstboot.service systemd-machine-id-commit.service \
    systemd-journal-flush.service systemd-sysusers.service systemd-pcrphase.service systemd-pcrphase-sysinit.service \
    systemd-repart.service systemd-remount-fs.service proc-sys-fs-binfmt_misc.automount sys-fs-fuse-connections.mount \
    sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount modprobe@drm.service modprobe@efi_pstore.service \
    modprobe@fuse.service modprobe@configfs.service sys-kernel-config.mount systemd-journald-audit.socket \
    remote-fs.target cryptsetup.target integritysetup.target veritysetup.target

# Each generator is a process before the first unit starts, and none of them has anything to find.
mkdir -p "$root/etc/systemd/system-generators"
for generator in "$root"/lib/systemd/system-generators/*; do
    ln -sf /dev/null "$root/etc/systemd/system-generators/${generator##*/}"
done

# D-Bus starts when somebody first asks for it.
rm "$root/lib/systemd/system/multi-user.target.wants/dbus.service"

# Packages and their lists are of no use where no registry can be reached.
rm -rf "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/* "$root"/var/lib/apt/lists/* \
    "$root"/var/cache/apt/*
