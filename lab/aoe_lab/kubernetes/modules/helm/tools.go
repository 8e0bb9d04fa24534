//go:build tools

// Package helm names the program that this module builds.
package helm

import _ "helm.sh/helm/v4/cmd/helm"
