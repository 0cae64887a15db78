"""How a job is put together and launched."""

import logging

# Beam says at import that Google's client libraries are not installed, which is as it should be here.
logging.getLogger().addFilter(lambda record: not record.getMessage().startswith("apitools not found"))
