"""Signatures after the Standard Webhooks specification: secrets and headers. Wire layer."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime

from standardwebhooks import Webhook

_PREFIX = "whsec_"
_FEWEST, _MOST = 24, 64


def parse_secret(text: str) -> bytes:
    """Return the bytes of a secret, which is ``whsec_`` and base64.

    Raises:
        ValueError: if it has another form, or is shorter or longer than the specification allows. The
            message does not repeat it.
    """
    try:
        # The library's own decoder skips what is no base64, and would take a passphrase for another.
        secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not text.startswith(_PREFIX) or not _FEWEST <= len(secret) <= _MOST:
        raise ValueError(
            f"expected as webhook secret {_PREFIX} and the base64 of {_FEWEST} to {_MOST} bytes, "
            f"got {len(text)} characters that are not that"
        )
    return secret


def signed_headers(secret: bytes, message: str, body: str, *, now: datetime) -> dict[str, str]:
    """Return the headers by which a receiver knows that we sent a body.

    Args:
        secret: shared with the receiver.
        message: the message's id, the same in each attempt to deliver it.
        body: what is sent.
        now: when this attempt is made, with a time zone.
    """
    whole = datetime.fromtimestamp(int(now.timestamp()), tz=now.tzinfo)
    return {
        "webhook-id": message,
        "webhook-timestamp": str(int(whole.timestamp())),
        "webhook-signature": Webhook(secret).sign(message, whole, body),
    }
