"""How often one client may post, counted in a real Redis, for all API processes together."""

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.middleware.auth import _make_key
from service.middleware.rate_limit import client_of, parse_rate
from tests.helpers.posting import post, segment
from tests.helpers.service_fixtures import Place, http_api, valkey, wait_for

ALICE, ALICES = _make_key("alice")
BOB, BOBS = _make_key("bob")
KEYS = f"{ALICES.line},{BOBS.line}"


def assert_limited(response: httpx.Response, *, window: int) -> None:
    assert response.status_code == 429
    assert response.json()["type"] == "/problems/rate-limited"
    assert response.headers["content-type"] == "application/problem+json"
    assert 1 <= int(response.headers["Retry-After"]) <= window


def test_the_limit_is_exact(idle: Place) -> None:
    with http_api(idle, rate="3/minute") as api:
        left = [post(api) for number in (1, 2)]
        left.append(segment(api))
        assert [response.status_code for response in left] == [202, 202, 202]
        assert all(response.headers["RateLimit-Policy"] == '"posts";q=3;w=60' for response in left)
        standing = [re.fullmatch(r'"posts";r=(\d);t=(\d+)', r.headers["RateLimit"]) for r in left]
        assert [match[1] for match in standing if match] == ["2", "1", "0"]
        limited = post(api)
        assert_limited(limited, window=60)
        assert limited.headers["RateLimit"] == f'"posts";r=0;t={limited.headers["Retry-After"]}'
        # Only posts of images count.
        assert api.get(left[0].headers["Location"]).status_code == 200
        assert "RateLimit" not in api.get("/models").headers
        assert api.post("/nope").status_code == 404
        assert idle.redis.keys("*LIMIT*") == [b"semples:rate:LIMITER/address:127.0.0.1/3/1/minute"]


def test_refused_posts_do_not_count(idle: Place) -> None:
    with http_api(idle, rate="1/second") as api:
        assert post(api).status_code == 202
        seen = set()

        def posted() -> bool:
            seen.add(post(api).status_code)
            return 202 in seen

        # It tries all the time, and still gets in when its second is over.
        wait_for(posted, what="the second post")
        assert seen <= {202, 429}


def test_each_key_has_its_own_limit(idle: Place) -> None:
    with http_api(idle, rate="1/minute", keys=KEYS) as api:
        alice, bob = {"Authorization": f"Bearer {ALICE}"}, {"X-API-Key": BOB}
        assert post(api, headers=alice).status_code == 202
        assert_limited(post(api, headers=alice), window=60)
        assert post(api, headers=bob).status_code == 202
        # Strangers are no client at all.
        assert post(api).status_code == 401
        assert idle.redis.keys("*address*") == []


def test_several_processes_count_together(idle: Place) -> None:
    with ExitStack() as stack:
        apis = [stack.enter_context(http_api(idle, rate="5/minute")) for _ in range(2)]
        with ThreadPoolExecutor(16) as pool:
            codes = list(pool.map(lambda n: post(apis[n % 2]).status_code, range(16)))
    assert sorted(codes) == [202] * 5 + [429] * 11


def test_only_a_trusted_proxy_gives_the_address(idle: Place) -> None:
    with http_api(idle, rate="1/minute") as api:
        assert post(api, headers={"X-Forwarded-For": "10.0.0.1"}).status_code == 202
        assert_limited(post(api, headers={"X-Forwarded-For": "10.0.0.2"}), window=60)
    with http_api(idle, rate="1/minute", trusted_proxies="10.9.0.0/16, 127.0.0.1") as api:
        assert post(api, headers={"X-Forwarded-For": "10.0.0.1"}).status_code == 202
        assert post(api, headers={"X-Forwarded-For": "10.0.0.2"}).status_code == 202
        # What a client writes before its proxy's own word is no use.
        assert_limited(post(api, headers={"X-Forwarded-For": "10.0.0.3, 10.0.0.2"}), window=60)


@pytest.mark.parametrize(
    ("client", "name"),
    [
        (("192.0.2.7", 1), "address:192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 1), "address:2001:db8:1:2::"),
        (("2001:db8:1:2:ffff::1", 1), "address:2001:db8:1:2::"),
        (("a host", 1), "address:unknown"),
        (None, "address:unknown"),
    ],
)
def test_client_names(client: Any, name: str) -> None:
    assert client_of({"type": "http", "client": client}) == name
    assert client_of({"type": "http", "client": client, "state": {"key_name": "al"}}) == "key:al"


def test_without_redis_the_queue_is_unreachable(tmp_path: Path) -> None:
    with valkey(tmp_path) as place, http_api(place, rate="3/minute") as api:
        place.redis.shutdown(nosave=True)
        response = post(api)
        assert response.status_code == 503
        assert response.json()["type"] == "/problems/queue-unreachable"
        assert int(response.headers["Retry-After"]) > 0


@pytest.mark.parametrize(
    ("text", "amount", "seconds"), [("60/minute", 60, 60), ("1000 per 2 hours", 1000, 7200), ("5/10second", 5, 10)]
)
def test_rates(text: str, amount: int, seconds: int) -> None:
    rate = parse_rate(text)
    assert (rate.amount, rate.get_expiry()) == (amount, seconds)


@pytest.mark.parametrize("text", ["", "often", "60", "0/minute", "1/minute;9/hour", "-1/minute"])
def test_no_rates(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected (a|one) rate such as"):
        parse_rate(text)
