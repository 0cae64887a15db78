"""``python -m itel_cabinet.local.services`` fetches parts of the local stack: see :mod:`.artifacts`."""

from __future__ import annotations

import sys

from itel_cabinet.local.services import artifacts

sys.exit(artifacts.main(sys.argv[1:]))
