"""Whether a ``callback_url`` is one that we call; the janitor asks the same again before it does."""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import invalid_field
from worker.webhooks.store import Recipient
from worker.webhooks.urls import CallbackRefusedError, Resolve, find_target, resolve_host

FIELD = "callback_url"


@dataclass(frozen=True)
class CallbackRules:
    """What this service takes for a callback.

    Attributes:
        offered: whether webhooks are sent at all, for which a secret is needed.
        allow_private: whether they may go to addresses that are not on the internet.
        resolve: finds a host's addresses.
    """

    offered: bool
    allow_private: bool = False
    resolve: Resolve = resolve_host

    async def recipient(self, url: str | None, *, root: str) -> Recipient | None:
        """Return who is to be told, or None if a form names nobody.

        Args:
            url: the form's.
            root: what the paths of the API begin with, as the client sees them.

        Raises:
            ProblemError: if the URL is none that we call.
        """
        if not url:
            return None
        if not self.offered:
            raise invalid_field(FIELD, "this service sends no webhooks: it has no webhook secret")
        try:
            await find_target(url, allow_private=self.allow_private, resolve=self.resolve)
        except CallbackRefusedError as error:
            raise invalid_field(FIELD, str(error)) from error
        return Recipient(url=url, root=root)
