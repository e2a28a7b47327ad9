"""The HTTP service around the engine: gateway, queue, worker."""
