"""URLs that webhooks may go to, in all spellings."""

import asyncio
from collections.abc import Sequence

import pytest

from tests.helpers.webhooks import PUBLIC, never_resolves, resolver
from worker.webhooks.urls import CallbackRefusedError, HostUnknownError, Target, _is_public, find_target


def find(url: str, *addresses: str, allow_private: bool = False) -> Target:
    resolve = {"resolve": resolver(*addresses)} if addresses else {}
    return asyncio.run(find_target(url, allow_private=allow_private, **resolve))


# kind → addresses
PRIVATE = {
    "this host": "127.0.0.1 127.8.8.8 0.0.0.0 :: ::1",
    "private networks": "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 fc00::1 fec0::1",
    "links": "169.254.0.1 fe80::1 fe80::1%eth0",
    "metadata of clouds": "169.254.169.254 168.63.129.16 192.0.0.192 100.100.100.200 fd00:ec2::254",
    "groups": "224.0.0.1 239.255.255.255 255.255.255.255 ff02::1 ff0e::1",
    "reserved": "240.0.0.1 198.18.0.1 192.88.99.1 100::1",
    "documentation": "192.0.2.1 198.51.100.1 203.0.113.1 2001:db8::1 3fff::1",
    "IPv4 in IPv6": "::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::127.0.0.1",
    "translated, 6to4, Teredo": "64:ff9b::7f00:1 64:ff9b:1::1 2002:7f00:1:: 2001::1",
}


@pytest.mark.parametrize("address", " ".join(PRIVATE.values()).split())
def test_addresses_that_are_not_on_the_internet(address: str) -> None:
    assert not _is_public(address)
    with pytest.raises(CallbackRefusedError, match=r"expected a host on the internet, got 'a.test'"):
        find("http://a.test/", address)
    with pytest.raises(CallbackRefusedError, match="on the internet"):  # one of two is enough
        find("http://a.test/", PUBLIC, address)
    assert find("http://a.test/", address, allow_private=True).addresses == (address,)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "1.1.1.1", "::ffff:8.8.8.8", "2606:4700:4700::1111"])
def test_addresses_on_the_internet(address: str) -> None:
    target = find("https://a.test:8443/hook?key=1", address)
    assert target.addresses == (address,)
    assert target.host == "a.test"


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "0", "0x7f000001", "0x7f.1", "2130706433", "017700000001"),
        *("localhost", "LOCALHOST", "localhost."),
        *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]", "169.254.169.254"),
        *("\uff11\uff12\uff17.0.0.1", "①②⑦.⓪.⓪.①", "127%2e0%2e0%2e1"),  # full-width, circled, quoted digits
    ],
)
def test_other_spellings_of_this_host(host: str) -> None:
    """With the system's own resolver, which knows all of them."""
    for scheme in ("http", "https"):
        with pytest.raises(CallbackRefusedError):
            find(f"{scheme}://{host}/")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://a.test/", "expected an http or https URL, got 'ftp'"),
        ("file:///etc/passwd", "got 'file'"),
        ("gopher://a.test/", "got 'gopher'"),
        ("//a.test/", "got ''"),
        ("a.test/hook", "got ''"),
        ("javascript:alert(1)", "got 'javascript'"),
        ("http://user:word@a.test/", "without credentials"),
        ("http://user@a.test/", "without credentials"),
        ("http://a.test@127.0.0.1/", "without credentials"),
        ("http://", "with a host"),
        ("http:///path", "with a host"),
        ("http://a.test\r\nX: 1/", "expected a URL"),
        ("http://a test/", "with a host"),
        ("http://127%2e0%2e0%2e1/", "with a host"),
        ("http://[fe80::1%25eth0]/", "expected a URL"),
        ("http://[::1/", "expected a URL"),
        ("http://a.test:port/", "expected a URL"),
        ("http://a.test:99999/", "expected a port up to 65535, got 99999"),
        ("http://a.test:0/", "expected a port up to 65535, got 0"),
        ("http://a.test/" + "x" * 3000, "at most 2048 characters, got 3014"),
    ],
)
def test_bad_urls(url: str, message: str) -> None:
    with pytest.raises(CallbackRefusedError, match=message):
        find(url, PUBLIC, allow_private=True)


@pytest.mark.parametrize("host", ["", "no-such-host.invalid", "x" * 300 + ".test", ".test", "a..test"])
def test_hosts_without_an_address(host: str) -> None:
    with pytest.raises(CallbackRefusedError):
        find(f"http://{host}/")


def test_a_resolver_that_finds_nothing_or_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.webhooks.urls.RESOLVE_SECONDS", 0.01)
    for resolve in (resolver(), never_resolves):
        with pytest.raises(HostUnknownError, match=r"expected a host on the internet, got 'a.test'"):
            asyncio.run(find_target("http://a.test/", allow_private=True, resolve=resolve))


def test_the_resolver_gets_host_and_port() -> None:
    asked: list[tuple[str, int]] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append((host, port))
        return [PUBLIC]

    for url in ("http://a.test/", "https://bücher.test/", "http://a.test:81/", "http://[2001:db8::1]/"):
        asyncio.run(find_target(url, allow_private=False, resolve=resolve))
    assert asked == [("a.test", 80), ("xn--bcher-kva.test", 443), ("a.test", 81), ("2001:db8::1", 80)]
