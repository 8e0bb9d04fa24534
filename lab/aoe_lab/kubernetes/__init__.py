"""A Kubernetes control plane beside the machines: etcd, API server, controller manager and scheduler, all real."""
