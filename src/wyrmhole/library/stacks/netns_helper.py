"""The helper of a namespace stack: enter new namespaces, open a TUN there, and make sockets for the parent.

It is run by path, `python -I -S netns_helper.py CHANNEL [USER_NAMESPACE NETWORK_NAMESPACE]`, and not imported by the
parent. The arguments are inherited descriptors. With one argument it makes new namespaces. With three it enters those
of a helper that died. It configures nothing: the parent owns the user namespace and has all capabilities over it.

The channel is a SOCK_SEQPACKET socket pair; integers are in the machine's byte order:

    request   number:u32  count:u32  family:i32  kind:i32  protocol:i32
    passing   number:u32  0:i32      0:u32       with `count` descriptors
    reply     number:u32  errno:i32  stage:u32

Numbers of requests start at 1; the count is 1 to 253, the kernel's SCM_MAX_FD. The answer is a passing and a reply with
errno 0, or only a reply. The reply is sent after the helper has closed its own copies: before, a socket would stay open
when the parent closes it. At its start, the helper sends an answer with number 0 without a request: with the open TUN
device if the namespaces are new, or with the errno and the stage that failed (0 unshare, 1 setns, 2 open).

Descriptors are passed with SCM_RIGHTS. The helper ends when the parent's end of the channel is closed.
"""

from __future__ import annotations

# Not `socket`, whose import takes three times as long as the rest of this program.
import _socket
import os
import struct
import sys

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
STAGE_UNSHARE, STAGE_SETNS, STAGE_OPEN = 0, 1, 2
REQUEST = struct.Struct("=IIiii")
REPLY = struct.Struct("=IiI")


def main(arguments: list[str]) -> int:
    channel_fd, *namespaces = map(int, arguments)
    channel = _socket.socket(fileno=channel_fd)
    stage = STAGE_SETNS if namespaces else STAGE_UNSHARE
    passed: list[int] = []
    try:
        if namespaces:
            enter(*namespaces)
        else:
            call("unshare", CLONE_NEWUSER | CLONE_NEWNET)
            stage = STAGE_OPEN
            passed.append(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        answer(channel, 0, error.errno or 0, stage)
        return 1
    give(channel, 0, passed)
    for descriptor in passed:
        os.close(descriptor)
    answer(channel, 0)
    serve(channel)
    return 0


def enter(user_namespace: int, network_namespace: int) -> None:
    """Enter the user namespace first, because it has the capability to enter the network namespace."""
    call("setns", user_namespace, CLONE_NEWUSER)
    call("setns", network_namespace, CLONE_NEWNET)
    os.close(user_namespace)
    os.close(network_namespace)


def call(name: str, *arguments: int) -> None:
    """Make a system call that `os` has since Python 3.12. Raises OSError."""
    function = getattr(os, name, None)
    if function is not None:
        function(*arguments)
        return
    # Import this file alone, because importing its package would take as long as the rest of this program.
    sys.path.append(os.path.abspath(f"{__file__}/../../../system"))
    getattr(__import__("libc"), name)(*arguments)


def serve(channel: _socket.socket) -> None:
    while len(request := channel.recv(REQUEST.size)) == REQUEST.size:
        number, count, family, kind, protocol = REQUEST.unpack(request)
        made: list[_socket.socket] = []
        refused = 0
        try:
            for _ in range(count):
                made.append(_socket.socket(family, kind, protocol))
            give(channel, number, [sock.fileno() for sock in made])
        except OSError as error:
            refused = error.errno or 0
        for sock in made:
            sock.close()
        answer(channel, number, refused)


def give(channel: _socket.socket, number: int, descriptors: list[int]) -> None:
    """Pass descriptors to the parent. Raises OSError: ETOOMANYREFS if too many are in transit."""
    if descriptors:
        rights = struct.pack(f"{len(descriptors)}i", *descriptors)
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)]
        channel.sendmsg([REPLY.pack(number, 0, 0)], ancillary)


def answer(channel: _socket.socket, number: int, errno: int = 0, stage: int = 0) -> None:
    channel.send(REPLY.pack(number, errno, stage))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
