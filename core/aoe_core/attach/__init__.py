"""The compute node's engine: stage records, proof of identity, mounting, sweeper and watchdog.

Sibling of `volumes`: knows no LVM, no Kubernetes and no gRPC. Used by the CSI node server and by guests on hypervisors.
"""
