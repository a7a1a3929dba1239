"""How many images one client may post in a time, counted in Redis, so for all API processes together."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv6Address, ip_address
from typing import Final

from anyio.to_thread import run_sync
from limits import RateLimitItem, parse_many
from limits.storage import RedisStorage
from limits.strategies import MovingWindowRateLimiter
from redis import Redis
from redis.exceptions import RedisError
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import ProblemError, response, to_problem
from service.middleware.auth import key_name, route_path

COUNTED_PATHS: Final = frozenset({"/pseudo-mask", "/segment", "/batches"})
"""Posts here make jobs; whatever else is asked for does not count. A batch counts as one."""

_PREFIX = "semples:rate"


@dataclass(frozen=True)
class Standing:
    """Where a client stands after a post.

    Attributes:
        allowed: whether this post is within the limit.
        remaining: how many more are, now.
        seconds: until the oldest one that counts counts no more, at least 1.
    """

    allowed: bool
    remaining: int
    seconds: int


class RateLimit:
    """ASGI middleware that counts posts of images and answers those beyond the limit with a problem.

    The window moves with the clock: in no stretch of a minute are there more than a minute's posts. A post counts when
    it comes, before its body is read, and whatever comes of it; one that is turned away here does not.

    Args:
        app: what is protected.
        rate: see ``parse_rate``.
        redis: where the counts are.
    """

    def __init__(self, app: ASGIApp, *, rate: RateLimitItem, redis: Redis) -> None:
        self.app = app
        self._rate = rate
        # The scheme alone counts; connections come from the pool, whatever its own address is.
        pool = redis.connection_pool
        storage = RedisStorage("redis://", connection_pool=pool, key_prefix=_PREFIX)
        self._limiter = MovingWindowRateLimiter(storage)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it; see ASGI."""
        if scope["type"] != "http" or not _counts(scope):
            await self.app(scope, receive, send)
            return
        try:
            standing = await run_sync(partial(self.count, client_of(scope)))
        except RedisError as error:
            await response(to_problem(error))(scope, receive, send)
            return
        headers = _headers(self._rate, standing)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        if standing.allowed:
            await self.app(scope, receive, send_with_headers)
            return
        refusal = ProblemError(
            "rate-limited",
            f"expected at most {self._rate}",
            headers={"Retry-After": str(standing.seconds)},
        )
        await response(refusal)(scope, receive, send_with_headers)

    def count(self, client: str) -> Standing:
        """Count a client's post, unless it is beyond the limit; blocks.

        Raises:
            RedisError: if Redis is away.
        """
        allowed = self._limiter.hit(self._rate, client)
        stats = self._limiter.get_window_stats(self._rate, client)
        seconds = max(1, math.ceil(stats.reset_time - time.time()))
        return Standing(allowed, max(0, stats.remaining), seconds)


def parse_rate(text: str) -> RateLimitItem:
    """Read a rate such as "60/minute" or "1000 per 2 hours".

    Raises:
        ValueError: if it is none, more than one, or 0.
    """
    try:
        rates = parse_many(text)
    except ValueError as error:
        raise ValueError(f'expected a rate such as "60/minute", got {text!r}') from error
    if len(rates) != 1 or rates[0].amount < 1:
        raise ValueError(f'expected one rate such as "60/minute", got {text!r}')
    return rates[0]


def client_of(scope: Scope) -> str:
    """Return what a request is counted under: its key's name, else its address.

    An IPv6 client commands a whole network of 64 bits, so that counts as one.
    """
    name = key_name(scope)
    if name is not None:
        return f"key:{name}"
    host = (scope.get("client") or ("",))[0]
    try:
        address = ip_address(host)
    except ValueError:  # a unix socket, or a test's invention
        return "address:unknown"
    if isinstance(address, IPv6Address):
        return f"address:{IPv6Address(int(address) >> 64 << 64)}"
    return f"address:{address}"


def _counts(scope: Scope) -> bool:
    return scope["method"] == "POST" and route_path(scope) in COUNTED_PATHS


def _headers(rate: RateLimitItem, standing: Standing) -> dict[str, str]:
    """Return the headers of draft-ietf-httpapi-ratelimit-headers: the policy, and where the client stands in it."""
    return {
        "RateLimit-Policy": f'"posts";q={rate.amount};w={rate.get_expiry()}',
        "RateLimit": f'"posts";r={standing.remaining};t={standing.seconds}',
    }
