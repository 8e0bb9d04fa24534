"""What every process of aoe-csi shares: the words, the host they change, and the engines built on it.

Owns no process and no wire format. Layers, lowest first: errors, units, model, host, then the engines. Each knows
only those below it; the contracts in pyproject.toml hold them to that.
"""
