"""A program that uses the library as in the guide: `python -m tests.ailments.try_library CONFIG HOST PORT SECONDS`.

It prints what its user would see: warnings of the log (logging's default), and the error that ended it.
"""

from __future__ import annotations

import asyncio
import sys

import wyrmhole

LARGE = b"x" * 4000
"""More than one segment, so that a path that loses large packets is noticed."""


async def main(config: str, host: str, port: str, seconds: str) -> None:
    try:
        async with wyrmhole.open(config) as tunnel:
            reader, writer = await tunnel.open_connection(host, int(port), timeout=float(seconds))
            writer.write(LARGE + b"\n")
            async with asyncio.timeout(float(seconds)):
                await reader.read()
            writer.close()
            print("it works")
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", ()):
            print(note)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
