"""One module for each target. `TestOneInput(data)` raises when something is wrong; its docstring is the oracle."""
