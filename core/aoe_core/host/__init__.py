"""One machine's abilities: the only code that runs commands, opens devices or writes below /var/lib/aoe-csi.

`contracts` says what a host can do; every other module here does one part of it for real, and `aoe_core.fakes` does
the same in memory. Both pass the same contract tests (tests/contract).
"""
