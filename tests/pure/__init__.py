"""Functions and models alone: no sockets, files, processes, clocks."""
