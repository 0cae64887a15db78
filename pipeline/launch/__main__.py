"""``python -m itel_cabinet.pipeline.launch JOB [options]``, for those who launch Beam by module."""

import sys

from itel_cabinet.pipeline.launch.job import main

sys.exit(main())
