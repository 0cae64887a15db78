"""``python -m itel_cabinet.pipeline.launch JOB [options]``, for those who launch Beam by module."""

import sys

from itel_cabinet.io.worker import prepare
from itel_cabinet.pipeline import launch

prepare()
sys.exit(launch.main())
