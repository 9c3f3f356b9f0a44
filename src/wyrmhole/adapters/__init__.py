"""A tunnel under other libraries: one module for each, imported only by those who want it."""
