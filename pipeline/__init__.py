"""The job: its graph, its options, and how it is launched and operated."""
