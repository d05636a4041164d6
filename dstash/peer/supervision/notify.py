"""Notifications to systemd (``sd_notify``): one datagram each, so no library is needed."""

from __future__ import annotations

import os
import socket

import structlog

_log = structlog.get_logger("dstash.peer")


def notify(state: str) -> None:
    """Send ``state`` (such as ``READY=1``) to the service manager, if there is any.

    See sd_notify(3). A failure is logged, and the peer continues.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # Linux' abstract namespace
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(state.encode(), address)
    except OSError as error:
        _log.warning("cannot notify the service manager", error=str(error))
