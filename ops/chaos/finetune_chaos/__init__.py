"""Chaos: hundreds of jobs through the real parts while a nemesis, driven by a seed, breaks all of them at once."""
