"""Failure drills: each starts a service of its own, breaks it under load, counts what its clients lost."""
