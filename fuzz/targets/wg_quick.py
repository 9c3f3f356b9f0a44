"""Configuration files of wg-quick(8), `# friendly_name` comments among them."""

from __future__ import annotations

from dataclasses import replace

from wyrmhole.control.config.file import MAX_ERRORS, Config
from wyrmhole.errors import ConfigFileError

NAME = "laptop of somebody"


def TestOneInput(data: bytes) -> None:
    """A file that is in order comes back byte for byte, and says the same again when its text, or what it says in a
    text of its own, is read. An edit changes what it was to change and nothing else.
    An error is one line that names a line of the file."""
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
    """Every peer gets a name, the interface a port, and one more peer comes; then all of it is taken away again."""
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
