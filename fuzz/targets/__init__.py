"""The targets, one per module. `TestOneInput(data)` raises if its docstring's statement does not hold."""
