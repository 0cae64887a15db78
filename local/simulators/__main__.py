"""``python -m itel_cabinet.local.simulators claimx|itel [options]``: one simulator as a process of its own."""

import sys

from itel_cabinet.local.simulators import claimx, itel

_SIMULATORS = {"claimx": claimx.main, "itel": itel.main}

if len(sys.argv) < 2 or sys.argv[1] not in _SIMULATORS:
    sys.exit(f"say which: {' or '.join(_SIMULATORS)}")
sys.exit(_SIMULATORS[sys.argv[1]](sys.argv[2:]))
