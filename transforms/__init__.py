"""What an event is and what happens to it: one module a step, pure functions wrapped by thin PTransforms."""
