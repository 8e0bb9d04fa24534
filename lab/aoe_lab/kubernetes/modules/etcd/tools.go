//go:build tools

// Package etcd names the programs that this module builds.
package etcd

import (
	_ "go.etcd.io/etcd/server/v3"
)
