"""The CSI driver: gRPC in, one Provisioner or the node's own host layer out.

Owns the wire: parsing, locking, the mapping of errors to status codes. Refuses to decide about storage; that is
aoe_core's part. Source: the CSI specification, proto/csi.proto.
"""

__version__ = "0.1.0.dev0"
"""The one place that knows it; the distribution's metadata are made from it, and need not be installed."""
