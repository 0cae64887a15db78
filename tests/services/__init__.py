"""Real servers beside the tests: a broker, an object store, Prometheus; jobs as processes of their own."""
