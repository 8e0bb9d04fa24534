"""Mount options: what a StorageClass may ask of a mount here. Pure.

Only options known to be harmless to the node and to other volumes pass; anything else is refused by name. Left out on
purpose: options that name other devices or files (journal_path, logdev), that act on the node (errors=panic, loop,
bind, X-mount.*), and that take away the durability this driver promises (nobarrier, journal_async_commit).
Sources: mount(8), ext4(5), xfs(5).
"""

import re

from aoe_core.attach.records import FilesystemUse
from aoe_core.errors import Invalid

PER_MOUNT = frozenset({"nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime", "strictatime", "nosymfollow"})
"""Flags of a mount and not of its file system: a bind that is remounted must be given them again."""

_NUMBER = re.compile(r"\d{1,10}[kmgKMG]?")
_LABEL = re.compile(r'"[^"\\\x00-\x1f]+"|[^",\\\s\x00-\x1f]+')

# fmt: off
_FLAGS = {
    "ext4": frozenset({
        "acl", "noacl", "user_xattr", "nouser_xattr", "auto_da_alloc", "noauto_da_alloc", "delalloc", "nodelalloc",
        "discard", "nodiscard", "init_itable", "noinit_itable", "journal_checksum", "dioread_lock",
        "dioread_nolock", "grpid", "nogrpid", "bsdgroups", "sysvgroups", "quota", "noquota", "usrquota", "grpquota",
        "prjquota", "mblk_io_submit",
    }),
    "xfs": frozenset({
        "attr2", "discard", "nodiscard", "grpid", "nogrpid", "bsdgroups", "sysvgroups", "filestreams", "ikeep",
        "noikeep", "inode32", "inode64", "largeio", "nolargeio", "nouuid", "noalign", "swalloc", "uquota",
        "usrquota", "uqnoenforce", "gquota", "grpquota", "gqnoenforce", "pquota", "prjquota", "pqnoenforce",
        "quota", "noquota", "wsync",
    }),
}
_COMMON = PER_MOUNT | frozenset({
    "defaults", "suid", "dev", "exec", "atime", "diratime", "norelatime", "nostrictatime", "lazytime",
    "nolazytime", "async", "sync", "dirsync", "iversion", "noiversion", "ro", "rw",
})
_LABELS = frozenset({"context", "fscontext", "defcontext", "rootcontext"})
_NUMBERS = {
    "ext4": frozenset({
        "commit", "init_itable", "stripe", "max_batch_time", "min_batch_time", "journal_ioprio",
        "inode_readahead_blks", "resuid", "resgid",
    }),
    "xfs": frozenset({"allocsize", "logbufs", "logbsize", "sunit", "swidth"}),
}
# fmt: on
_WORDS = {
    "ext4": {"data": frozenset({"journal", "ordered", "writeback"}), "errors": frozenset({"continue", "remount-ro"})},
    "xfs": {},
}


def mount_options(use: FilesystemUse, *, read_only: bool) -> tuple[str, ...]:
    """Return the options for mounting a volume's file system. Raises: Invalid naming the option refused."""
    wanted = [part for option in use.options for part in _split(option)]
    for option in wanted:
        if not _is_known(option, use.filesystem):
            raise Invalid(f"mount option {option[:80]!r} is not offered for {use.filesystem}; leave it out")
    # Whether it is writable is decided by the grant, never by an option alone.
    read_only = read_only or "ro" in wanted
    options = [option for option in wanted if option not in ("ro", "rw", "defaults")]
    if use.filesystem == "ext4":
        if not any(option.startswith("errors=") for option in options):
            # After an I/O error, go on reading; mke2fs's own default would go on writing.
            options.append("errors=remount-ro")
        options += ["ro", "noload"] if read_only else ["rw"]
    else:
        # A clone and its source, or a snapshot, may be on one node.
        options = [option for option in options if option != "nouuid"] + ["nouuid"]
        options += ["ro", "norecovery"] if read_only else ["rw"]
    return tuple(options)


def is_read_only(use: FilesystemUse) -> bool:
    """Say whether a use's own options ask for a read-only mount."""
    return any(part == "ro" for option in use.options for part in _split(option))


def bind_options(use: FilesystemUse) -> tuple[str, ...]:
    """Return the options that a bind of the mount must repeat."""
    return tuple(part for option in use.options for part in _split(option) if part in PER_MOUNT)


def _split(option: str) -> list[str]:
    """Split at commas outside quotes: SELinux contexts hold commas."""
    parts, quoted = [""], False
    for char in option:
        quoted ^= char == '"'
        if char == "," and not quoted:
            parts.append("")
        else:
            parts[-1] += char
    return [part for part in parts if part]


def _is_known(option: str, filesystem: str) -> bool:
    name, separator, value = option.partition("=")
    if not separator:
        return name in _COMMON or name in _FLAGS[filesystem]
    if name in _LABELS:
        return _LABEL.fullmatch(value) is not None
    if name in _NUMBERS[filesystem]:
        return _NUMBER.fullmatch(value) is not None
    return value in _WORDS[filesystem].get(name, frozenset())
