"""HTTP as this worker uses it: every call ends by a deadline, nothing is retried, no secret gets into a message."""
