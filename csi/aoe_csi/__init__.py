"""The CSI driver: gRPC in, one Provisioner or the node's own host layer out.

Owns the wire: parsing, locking, the mapping of errors to status codes. Refuses to decide about storage; that is
aoe_core's part. Source: the CSI specification, proto/csi.proto.
"""
