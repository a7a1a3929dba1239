"""Middleware that limits each client's posts of images, counted in Redis for all API processes together."""

from __future__ import annotations

import math
import time
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

from service.api.errors import ProblemError, problem_response
from service.middleware.auth import key_name, route_path

_COUNTED_PATHS: Final = frozenset({"/pseudo-mask", "/segment", "/batches"})
_PREFIX: Final = "semples:rate"


class RateLimit:
    """ASGI middleware that counts posts of images and answers those beyond the limit with a problem.

    In a moving window: no stretch of a minute has more than a minute's posts. A post counts when it arrives, before its
    body is read and whatever its result; one that is refused here does not. A batch counts as one post.
    """

    def __init__(self, app: ASGIApp, *, rate: RateLimitItem, redis: Redis) -> None:
        self.app = app
        self._rate = rate
        # Only the scheme of this URL counts: connections come from the pool.
        pool = redis.connection_pool
        storage = RedisStorage("redis://", connection_pool=pool, key_prefix=_PREFIX)
        self._limiter = MovingWindowRateLimiter(storage)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it; see ASGI."""
        counts = scope["type"] == "http" and scope["method"] == "POST"
        if not counts or route_path(scope) not in _COUNTED_PATHS:
            await self.app(scope, receive, send)
            return
        try:
            allowed, seconds, headers = await run_sync(self._count, client_of(scope))
        except RedisError as error:
            await problem_response(error, scope)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        if allowed:
            await self.app(scope, receive, send_with_headers)
            return
        retry = {"Retry-After": str(seconds)}
        refusal = ProblemError("rate-limited", f"expected at most {self._rate}", headers=retry)
        await problem_response(refusal, scope)(scope, receive, send_with_headers)

    def _count(self, client: str) -> tuple[bool, int, dict[str, str]]:
        """Count a post: whether it is allowed, seconds to the oldest one's expiry, and the response's headers."""
        allowed = self._limiter.hit(self._rate, client)
        stats = self._limiter.get_window_stats(self._rate, client)
        seconds = max(1, math.ceil(stats.reset_time - time.time()))
        headers = {  # of draft-ietf-httpapi-ratelimit-headers
            "RateLimit-Policy": f'"posts";q={self._rate.amount};w={self._rate.get_expiry()}',
            "RateLimit": f'"posts";r={max(0, stats.remaining)};t={seconds}',
        }
        return allowed, seconds, headers


def parse_rate(text: str) -> RateLimitItem:
    """Read one rate such as "60/minute" or "1000 per 2 hours"; ValueError if it is not one, or 0."""
    try:
        rates = parse_many(text)
    except ValueError as error:
        raise ValueError(f'expected a rate such as "60/minute", got {text!r}') from error
    if len(rates) != 1 or rates[0].amount < 1:
        raise ValueError(f'expected one rate such as "60/minute", got {text!r}')
    return rates[0]


def client_of(scope: Scope) -> str:
    """Return the name that a request is counted under: its key's name, else its address.

    An IPv6 client usually has a whole /64 network, which counts as one.
    """
    name = key_name(scope)
    if name is not None:
        return f"key:{name}"
    host = (scope.get("client") or ("",))[0]
    try:
        address = ip_address(host)
    except ValueError:  # a unix socket
        return "address:unknown"
    if isinstance(address, IPv6Address):
        return f"address:{IPv6Address(int(address) >> 64 << 64)}"
    return f"address:{address}"
