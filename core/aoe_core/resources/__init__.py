"""The custom resources of group aoe-csi.dev: what is wanted in a cluster, and what has become of it.

Each kind is one module of structs; the schemas that the API server enforces are made from these structs
(`definitions`), so that code and cluster cannot come apart.
"""
