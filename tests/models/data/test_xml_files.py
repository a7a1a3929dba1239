"""XML from outside: read, or refused before anything of it grows."""

from __future__ import annotations

import pytest

from models.data.voc import parse_xml

GROWING = '<!DOCTYPE a [<!ENTITY b "cat">]><annotation>&b;</annotation>'


@pytest.mark.parametrize("content", ["<a><b>cät</b></a>", "<a><b>cät</b></a>".encode("utf-16")])
def test_read(content: str | bytes) -> None:
    assert parse_xml(content).findtext("b") == "cät"


@pytest.mark.parametrize(
    "content",
    [
        GROWING,
        GROWING.encode(),
        GROWING.encode("utf-16"),
        # An encoding in which no search for bytes finds it.
        ("<?xml version='1.0' encoding='cp037'?>" + GROWING).encode("cp037"),
    ],
)
def test_document_types(content: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"a document type|not well-formed"):
        parse_xml(content)


@pytest.mark.parametrize("content", ["", "<a>", "\0", b'<?xml version="1.0" encoding="foo"?><a/>'])
def test_no_xml(content: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"no element|unclosed|not well-formed|unknown encoding"):
        parse_xml(content)
