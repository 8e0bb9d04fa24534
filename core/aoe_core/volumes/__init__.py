"""A storage node's engine: pools, volumes, snapshots, addresses and grants on this machine's LVM and exports.

Deciding is pure (`plan`, `grants`, `addresses`, `pools`), doing is dull (`apply`); `engine` joins them. Knows no
Kubernetes and no gRPC. Truth: LVM's tags say what exists, the export files say what is on the wire.
"""
