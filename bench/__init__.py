"""Measurements: ratios of two things timed in one run, never times by themselves; machines differ and are noisy."""
