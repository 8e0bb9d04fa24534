"""The wire formats of CSI 1.13.0 and of kubelet's plugin registration: protos as published, and their stubs.

Owns nothing by hand: `make proto` writes every other Python file here. The protos are unchanged: csi.proto of the Go
module github.com/container-storage-interface/spec at v1.13.0, and pkg/apis/pluginregistration/v1/api.proto of the Go
module k8s.io/kubelet at v0.37.2; both Apache-2.0.
"""
