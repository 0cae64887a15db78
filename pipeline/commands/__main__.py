"""``python -m itel_cabinet.pipeline.commands``: the command `itel-cabinet` where it is not on the path."""

import sys

from itel_cabinet.pipeline.commands import main

sys.exit(main())
