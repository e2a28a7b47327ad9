"""TwigVLM: the engine, the twig, and how both are trained. Never imports `service`."""
