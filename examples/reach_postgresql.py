"""Ask a PostgreSQL server in a private network for its version, as an ordinary user.

usage: python examples/reach_postgresql.py wg0.conf db.internal USER [PASSWORD]
       (pip install pg8000 '.[dns]' in a checkout)

This driver accepts a socket. For a driver that does not, forward a port of this host instead:
`service = tunnel.forward("127.0.0.1:0", "db.internal:5432")`, and connect it to `service.addresses[0]`.
"""

from __future__ import annotations

import sys

import pg8000.native

import wyrmhole.sync


def main(config: str, host: str, user: str, password: str | None = None) -> None:
    with wyrmhole.sync.open(config) as tunnel:
        sock = tunnel.create_connection((host, 5432), timeout=10)
        database = pg8000.native.Connection(
            user, database="postgres", password=password, host=host, sock=sock, ssl_context=False
        )
        print(database.run("SELECT version()"))
        database.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
