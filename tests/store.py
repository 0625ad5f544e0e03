"""A stand-in for an object store on 127.0.0.1, so that tests can use pyarrow's S3 client without the network.

Emulated is what the client asks for when it lists, reads and writes objects of one bucket: ListObjectsV2 in pages,
HeadBucket, HeadObject, GetObject with ranges, and uploads in parts, whose bodies come in the chunks of AWS. An object
is there when its upload is completed, not before. Left out are signatures: every key is good but ``wrong``.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Mapping
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "shelf"
PAGE = 3  # entries in a page of a list; Amazon's has 1,000
CHANGED = "2031-02-07T10:00:00.000Z", "Fri, 07 Feb 2031 10:00:00 GMT"  # all objects, in a list and alone


class Reply(NamedTuple):
    """What is sent for a request."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = MappingProxyType({})


def as_xml(name: str, text: str, status: int = 200) -> Reply:
    """A reply as Amazon's API has it."""
    return Reply(status, f'<?xml version="1.0"?><{name}>{text}</{name}>'.encode(), {"Content-Type": "application/xml"})


def refuse(status: int, code: str) -> Reply:
    """The reply for what cannot be done."""
    return as_xml("Error", f"<Code>{code}</Code><Message>{code} on purpose</Message>", status)


class Handler(BaseHTTPRequestHandler):
    """Passes requests on to the store and sends its replies."""

    protocol_version = "HTTP/1.1"
    server: Store

    def do_GET(self) -> None:
        """Answer one request."""
        body = self._read()
        self.server.requests.append((self.command, self.path))
        reply = self.server.answer(self.command, self.path, body, self.headers)
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _read(self) -> bytes:
        """The body of a request, without the chunks of HTTP and those of AWS."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        data = b""
        while size := int(body.partition(b"\r\n")[0].partition(b";")[0], 16):
            body = body.partition(b"\r\n")[2]
            data, body = data + body[:size], body[size + 2 :]
        return data

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet; what was asked for is in ``store.requests``."""


class Store(ThreadingHTTPServer):
    """A store with one bucket while in ``with Store() as store``.

    ``store.url(path)`` is for pyarrow. ``store.objects`` has the bytes of each object by its key, in the order in which
    they came, and may be changed. ``store.requests`` lists method and path of each request. ``store.before`` may be set
    to a function of both that is called first; if it returns a reply, this is sent.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.before: Callable[[str, str], Reply | None] = lambda method, path: None
        self._uploads: dict[str, dict[int, bytes]] = {}

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def url(self, path: str, user: str = "anna") -> str:
        """The URL of a key, or of all that begins with it."""
        options = f"scheme=http&endpoint_override=127.0.0.1:{self.server_port}&region=eu-north-1"
        return f"s3://{user}:secret@{BUCKET}/{path}?{options}"

    @property
    def written(self) -> list[str]:
        """The keys of the uploads that were completed, in their order."""
        posts = (urlsplit(path) for method, path in self.requests if method == "POST" and "uploadId=" in path)
        return [unquote(url.path).removeprefix(f"/{BUCKET}/") for url in posts]

    def answer(self, method: str, target: str, body: bytes, headers: Message) -> Reply:
        """The reply for a request."""
        if reply := self.before(method, target):
            return reply
        if "Credential=wrong/" in headers.get("Authorization", ""):
            return refuse(403, "InvalidAccessKeyId")
        url = urlsplit(target)
        options = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        bucket, _, key = unquote(url.path).removeprefix("/").partition("/")
        if bucket != BUCKET:
            return refuse(404, "NoSuchBucket")
        if not key:
            return self._list(options) if method == "GET" else Reply(200)
        if "uploads" in options:
            upload = f"upload-{len(self._uploads)}"
            self._uploads[upload] = {}
            return as_xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
        if method == "PUT":
            self._uploads[options["uploadId"]][int(options["partNumber"])] = body
            return Reply(200, headers={"ETag": f'"{options["partNumber"]}"'})
        if method == "POST":
            numbers = map(int, re.findall(rb"<PartNumber>(\d+)</PartNumber>", body))
            self.objects[key] = b"".join(self._uploads[options["uploadId"]][number] for number in sorted(numbers))
            return as_xml("CompleteMultipartUploadResult", "<ETag>1</ETag>")
        if method == "DELETE":
            self._uploads.pop(options["uploadId"])
            return Reply(204)
        return self._read(key, headers.get("Range", ""), method == "HEAD")

    def _list(self, options: Mapping[str, str]) -> Reply:
        prefix, delimiter = options.get("prefix", ""), options.get("delimiter", "")
        entries: dict[str, str] = {}
        for key in sorted(key for key in self.objects if key.startswith(prefix)):
            folder, mark, _ = key.removeprefix(prefix).partition(delimiter) if delimiter else (key, "", "")
            if mark:
                name = escape(prefix + folder + mark)
                entries[name] = f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"
            else:
                size = len(self.objects[key])
                facts = f"<Key>{escape(key)}</Key><LastModified>{CHANGED[0]}</LastModified><Size>{size}</Size>"
                entries[escape(key)] = f"<Contents>{facts}</Contents>"
        first, most = int(options.get("continuation-token", 0)), min(PAGE, int(options.get("max-keys", PAGE)))
        page = list(itertools.islice(entries.values(), first, first + most))
        more = first + most < len(entries)
        end = f"<NextContinuationToken>{first + most}</NextContinuationToken>" if more else ""
        state = f"<IsTruncated>{str(more).lower()}</IsTruncated><KeyCount>{len(page)}</KeyCount>"
        return as_xml("ListBucketResult", f"{state}{end}{''.join(page)}")

    def _read(self, key: str, wanted: str, head: bool) -> Reply:
        if key not in self.objects:
            return refuse(404, "NoSuchKey")
        data = self.objects[key]
        headers = {"Last-Modified": CHANGED[1], "ETag": '"1"', "Accept-Ranges": "bytes"}
        if head:
            return Reply(200, headers=headers | {"Content-Length": str(len(data))})
        if match := re.fullmatch(r"bytes=(\d+)-(\d+)", wanted):
            first, last = int(match[1]), min(int(match[2]), len(data) - 1)
            return Reply(206, data[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"})
        return Reply(200, data, headers)
