"""Volumes as disks of guests on this host: the layer above `attach` and the hypervisor.

Knows no Kubernetes and no gRPC. Used by `aoe-csi guest`.
"""
