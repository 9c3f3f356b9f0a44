"""The errors of a look-up, separate from the resolver so that they need no dnspython."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dns.name


class ServerFailed(Exception):
    """A server gave no usable answer. Another one may. The text gives the reason."""


def unanswered(name: dns.name.Name, reason: str) -> socket.gaierror:
    shown = name.to_text(omit_final_dot=True)
    return socket.gaierror(socket.EAI_AGAIN, f"no name server of the tunnel answered for {shown}: {reason}")


def unknown_name(host: str) -> socket.gaierror:
    return socket.gaierror(socket.EAI_NONAME, f"the tunnel's name servers do not know {host!r}")
