"""The operator: what is wanted in the cluster's resources, done on this host and written back."""
