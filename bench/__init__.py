"""Measurements: side by side in one run, as ratios. Never asserted in tests, since machines differ."""

import itel_cabinet.pipeline  # noqa: F401  before Beam, whose complaint at import it drops
