"""What one process can do: files, tables in them, simulators over loopback, Beam in this process."""
