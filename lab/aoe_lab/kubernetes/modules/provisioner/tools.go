//go:build tools

// Package provisioner names the program that this module builds. It is apart from the other sidecars, since it needs
// an older Kubernetes than they do.
package provisioner

import _ "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner"
