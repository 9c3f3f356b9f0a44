"""Load a configuration that a program passes as an object, as text, or as a path."""

from __future__ import annotations

import os

from wyrmhole.control.config.file import Config


def load_config(config: Config | str | os.PathLike[str]) -> Config:
    """Return the configuration. A str is its text if it has several lines or begins with `[` or `#`; otherwise a path.

    Raises OSError, ConfigFileError.
    """
    if isinstance(config, Config):
        return config
    if isinstance(config, str) and ("\n" in config or config.lstrip().startswith(("[", "#"))):
        return Config.parse(config, source="<text>")
    return Config.load(os.path.expanduser(config))
