//go:build tools

// Package helm3 names the program that this module builds.
package helm3

import _ "helm.sh/helm/v3/cmd/helm"
