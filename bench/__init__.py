"""Measurements: side by side in one run, as ratios. Never asserted in tests, since machines differ."""
