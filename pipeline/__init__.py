"""How a job is put together and launched."""
