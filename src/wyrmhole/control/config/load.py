"""A configuration as programs give it: parsed already, as text, or as a path."""

from __future__ import annotations

import os

from wyrmhole.control.config.file import Config


def load_config(config: Config | str | os.PathLike[str]) -> Config:
    """A Config, a file of one, or the text of one: what has more than a line or begins with `[`, `#`.
    Raises OSError, ConfigFileError."""
    if isinstance(config, Config):
        return config
    if isinstance(config, str) and ("\n" in config or config.lstrip().startswith(("[", "#"))):
        return Config.parse(config, source="<text>")
    return Config.load(os.path.expanduser(config))
