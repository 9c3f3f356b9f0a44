"""A tunnel inside of a Python program."""
