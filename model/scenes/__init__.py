"""Scenes: pictures composed from open emoji art, with everything that is true of them. Torch-free."""
