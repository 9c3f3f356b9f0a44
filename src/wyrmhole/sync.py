"""`wyrmhole.sync`: the library for blocking code. It is in `library/sync.py`, beside its twin for asyncio."""

from wyrmhole.library.sync import LoopThread, Peer, Peers, Service, Tunnel, open

__all__ = ["LoopThread", "Peer", "Peers", "Service", "Tunnel", "open"]
