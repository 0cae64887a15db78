"""The tests, by what they need: see docs/testing.md."""
