"""The wire format of CSI 1.13.0: csi.proto as published, and the stubs generated from it.

Owns nothing by hand: `make proto` writes every other Python file here. The proto is csi.proto of the Go module
github.com/container-storage-interface/spec at v1.13.0, Apache-2.0, unchanged.
"""
