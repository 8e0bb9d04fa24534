"""A whole SAN in memory: machines with LVM, export units, wires, initiators, mounts and file systems.

The fakes answer to the protocols of `aoe_core.host.contracts` and pass the same contract tests as the real host
(tests/contract). Where the real thing is nasty they are nasty too: freed space keeps its content, unflushed writes
vanish with the power, an initiator believes every target that answers, a stuck exporter keeps its lock.

Start at `world.World`. Every change passes one hook, `World.on_step`, before and after its effect, so that a test can
kill a process or a machine at every boundary.
"""
