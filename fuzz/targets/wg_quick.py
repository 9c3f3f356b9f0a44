"""Configuration files of wg-quick(8), including `# friendly_name` comments."""

from __future__ import annotations

from dataclasses import replace

from wyrmhole.control.config.file import MAX_ERRORS, Config
from wyrmhole.errors import ConfigFileError

NAME = "laptop of somebody"


def TestOneInput(data: bytes) -> None:
    """A valid file is emitted byte for byte. Its text, and a new text made from its values, parse to the same
    configuration. An edit changes only its own value. An error is one line that names a line of the file."""
    text = data.decode(errors="replace")
    config, errors = Config.parse_all(text)
    check_errors(errors, text)
    if errors:
        return
    assert config.emit() == text
    assert Config.parse(text) == config
    assert Config.parse(Config(config.interface, [replace(peer) for peer in config.peers]).emit()) == config
    check_edits(text)


def check_errors(errors: list[ConfigFileError], text: str) -> None:
    assert len(errors) <= MAX_ERRORS
    for error in errors:
        assert 1 <= error.line <= text.count("\n") + 1
        assert "\n" not in str(error) and len(str(error)) < 1000


def check_edits(text: str) -> None:
    """Give every peer a name and the interface a port; then remove all peers. Check the text after each step."""
    config = Config.parse(text)
    before = [replace(peer) for peer in config.peers]
    for peer in config.peers:
        peer.name = NAME
    config.interface.listen_port = 4711
    edited = Config.parse(config.emit())
    assert edited == config
    assert edited.peers == [replace(peer, name=NAME) for peer in before]
    config.peers.clear()
    assert Config.parse(config.emit()).peers == []
