"""XML from outside, which can neither grow nor fetch anything."""

from __future__ import annotations

from xml.etree import ElementTree

_DOCTYPE = "<!DOCTYPE"


class _NoDoctype(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        del name, pubid, system
        raise ValueError("a document type")


def parse_xml(content: str | bytes) -> ElementTree.Element:
    """Return the root of an XML document.

    A document type may define words that unfold to gigabytes, and no file that is read here has one.

    Raises:
        ValueError: if it is no XML, or has a document type.
    """
    # The parser's own word comes too late: expat unfolds what follows before it lets go, up to some megabytes. What it
    # alone sees is a document type in an encoding that is neither like ASCII nor UTF-16.
    known = _DOCTYPE in content if isinstance(content, str) else _has_doctype(content)
    if known:
        raise ValueError("a document type")
    try:
        return ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDoctype()))
    except (ElementTree.ParseError, LookupError) as error:  # the latter of an unknown encoding
        raise ValueError(str(error)) from error


def _has_doctype(content: bytes) -> bool:
    return any(_DOCTYPE.encode(each) in content for each in ("ascii", "utf-16-le", "utf-16-be"))
