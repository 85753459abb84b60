"""HTTP/1.1 by hand, so that the load generator costs little: requests as ready bytes, responses read as they arrive.

Comes in: texts, and bytes from a socket. Goes out: request bytes, and responses with their embeddings. No socket is
here.
"""

import json
from dataclasses import dataclass

# The two shapes of an embedding route.
OPENAI = "openai"  # POST /v1/embeddings {"model", "input"} -> {"data": [{"index", "embedding"}]}
EMBED = "embed"  # POST /embed {"inputs"} -> [[...]]
PATHS = {OPENAI: "/v1/embeddings", EMBED: "/embed"}


class BadResponse(Exception):
    """The bytes or the JSON are not what the protocol says."""


@dataclass(frozen=True)
class Response:
    """One whole answer."""

    status: int
    body: bytes
    keeps_open: bool


def request_bytes(api: str, host: str, model: str, texts: list[str]) -> bytes:
    """A whole request; one text goes as a string, several as a list."""
    given = texts[0] if len(texts) == 1 else texts
    if api == OPENAI:
        content = {"model": model, "input": given, "encoding_format": "float"}
    else:
        # Texts that are too long are refused and not cut off in silence.
        content = {"inputs": given, "truncate": False, "normalize": True}
    body = json.dumps(content).encode()
    head = [
        f"POST {PATHS[api]} HTTP/1.1",
        f"host: {host}",
        "content-type: application/json",
        f"content-length: {len(body)}",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def embeddings(api: str, body: bytes) -> list[list[float]]:
    """The embeddings of an answer, in the order of the texts."""
    try:
        content = json.loads(body)
        if api == EMBED:
            rows = content
        else:
            rows = [entry["embedding"] for entry in sorted(content["data"], key=lambda entry: entry["index"])]
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise TypeError("the embeddings are no lists of numbers")
    except (ValueError, KeyError, TypeError) as error:
        raise BadResponse(f"not the JSON of {PATHS[api]}: {error}; it begins {body[:120]!r}") from error
    return rows


class ResponseReader:
    """Takes the bytes of one connection as they come and gives whole responses. One request is under way at a time."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._head: _Head | None = None

    def feed(self, data: bytes) -> Response | None:
        """More bytes; the response when it is complete."""
        self._bytes += data
        if self._head is None:
            end = self._bytes.find(b"\r\n\r\n")
            if end < 0:
                return None
            self._head = _read_head(bytes(self._bytes[:end]))
            del self._bytes[: end + 4]
        head = self._head
        if head.is_chunked:
            # Looked at anew only when the end may have come: a last chunk of no bytes ends with two line ends.
            found = _read_chunks(self._bytes) if self._bytes.endswith(b"\r\n\r\n") else None
            if found is None:
                return None
            body, rest = found
        else:
            if len(self._bytes) < head.length:
                return None
            body, rest = bytes(self._bytes[: head.length]), bytes(self._bytes[head.length :])
        if rest:
            raise BadResponse(f"{len(rest)} bytes more than the response has")
        self._bytes.clear()
        self._head = None
        return Response(head.status, body, head.keeps_open)


@dataclass(frozen=True)
class _Head:
    status: int
    length: int
    is_chunked: bool
    keeps_open: bool


def _read_head(head: bytes) -> _Head:
    lines = head.split(b"\r\n")
    parts = lines[0].split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        raise BadResponse(f"not a status line: {lines[0][:80]!r}")
    length, is_chunked, keeps_open = None, False, parts[0] != b"HTTP/1.0"
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        name, value = name.strip().lower(), value.strip().lower()
        if name == b"content-length":
            if not value.isdigit():
                raise BadResponse(f"not a length: {value[:40]!r}")
            length = int(value)
        elif name == b"transfer-encoding":
            is_chunked = value.endswith(b"chunked")
        elif name == b"connection":
            keeps_open = value != b"close"
    if length is None and not is_chunked:
        raise BadResponse("neither a content-length nor chunks")
    return _Head(int(parts[1]), length or 0, is_chunked, keeps_open)


def _read_chunks(data: bytearray) -> tuple[bytes, bytes] | None:
    """The body out of its chunks and what follows it, or None when the last chunk is not there yet."""
    body, at = bytearray(), 0
    while True:
        line_end = data.find(b"\r\n", at)
        if line_end < 0:
            return None
        size_text = bytes(data[at:line_end]).partition(b";")[0].strip()
        try:
            size = int(size_text, 16)
        except ValueError as error:
            raise BadResponse(f"not the size of a chunk: {size_text[:40]!r}") from error
        at = line_end + 2
        if size == 0:
            # Trailers may follow; an empty line ends them.
            end = data.find(b"\r\n\r\n", line_end)
            return None if end < 0 else (bytes(body), bytes(data[end + 4 :]))
        if len(data) < at + size + 2:
            return None
        body += data[at : at + size]
        at += size + 2
