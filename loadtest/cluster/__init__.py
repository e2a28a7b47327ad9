"""Several hosts on one machine: every process of the service in a network namespace of its own."""
