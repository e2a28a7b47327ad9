"""The HTTP routes, one file a resource. They see the `Gateway`, never Redis."""
