"""Tunnels inside a Python program."""
