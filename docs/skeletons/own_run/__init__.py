"""A run with a network and data of your own, in a package of your own: see config.py."""
