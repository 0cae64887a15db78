"""Downloads from addresses that somebody else has written down: guarded against where they may lead.

A link comes with an answer of an API, and so from people who fill in forms there. One who controls a link must not be
able to have this process fetch from networks that only it can reach. So every link and every redirect is held against
:class:`AllowedHosts`: its scheme and host's name before anything is done, and the address that the name leads to when
the connection is made: what was checked is what is connected to, however often the name changes its address.

No credentials are sent, no cookies kept, no proxy used: through one, the address could not be checked.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random as _random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import IO, Literal
from urllib.parse import urljoin

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import Timeout, Url, parse_url

from itel_cabinet.io.http.answers import Meaning, read_status
from itel_cabinet.io.http.sockets import make_pools
from itel_cabinet.io.http.transport import describe_failure
from itel_cabinet.io.worker import SettingError, full_jitter, once_per_process

__all__ = ["AllowedHosts", "DownloadError", "DownloadSettings", "Downloads", "FailureReason", "get_downloads"]

FailureReason = Literal["refused", "expired", "wrong_type", "too_large", "no_room", "download"]
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_REDIRECTS = (301, 302, 303, 307, 308)
_GONE = (401, 403, 404, 410)
_MOST_REDIRECTS = 5
_MOST_TRIES = 4
_WAITS = (0.2, 2.0)  # seconds: the first and the longest, before jitter
_MEMORY_BYTES = 1024 * 1024  # more of a download lies in a temporary file
_CHUNK = 65_536
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# What stores give where no type was set; the content then has to show it.
_UNTYPED = ("", "application/octet-stream", "binary/octet-stream")
_IMAGE = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8|BM|II\*\x00|MM\x00\*|RIFF....WEBP|....ftyp", re.DOTALL)


class DownloadError(Exception):
    """A file cannot be had. ``reason`` is ``refused`` (the link leads where it may not), ``expired`` (401, 403, 404 or
    410: a fresh link may help), ``wrong_type`` (no image), ``too_large``, ``no_room`` (for a temporary file, on
    this machine) or ``download``. The text is one line, which names a host at most.
    """

    def __init__(self, reason: FailureReason, text: str) -> None:
        super().__init__(text)
        self.reason: FailureReason = reason


class _BrokenError(Exception):
    """One try failed in a way that another may not."""


# ----------------------------------------------------------------------------------------------------------- the guard


@dataclass(frozen=True)
class AllowedHosts:
    """Where links may lead. Each entry is a host's name, ``*.domain`` for every name below a domain, an IP address or a
    network (``10.1.0.0/16``). Raises SettingError when made; hashable.

    - A link leads to a host that an entry names.
    - What the name leads to must be a public address, by https; or, by https or http, an address that an entry lists as
      an address or network. A name alone never opens the way to a private address.
    """

    entries: tuple[str, ...]

    def __post_init__(self) -> None:
        for entry in self.entries:
            if _network(entry) is None and not re.fullmatch(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", entry.lower()):
                raise SettingError(f"{entry!r} is no host name, *.domain, IP address or network", field="allowed_hosts")

    def check(self, link: str) -> Url:
        """The parts of a link that may be followed. Raises DownloadError (``refused``), without its path and query."""
        try:
            if re.search(r"[\\\x00-\x1f\x7f]", link):  # read one way by one parser, another by the next
                raise ValueError
            url = parse_url(link)
        except (LocationParseError, UnicodeError, ValueError):
            raise DownloadError("refused", "the link is no URL") from None
        host = _bare(url.host)
        if url.scheme not in ("https", "http") or not host:
            raise DownloadError("refused", "the link is not http(s)://HOST/...")
        if url.auth is not None:
            raise DownloadError("refused", "the link holds a user name")
        if re.search(r"[^a-z0-9._:%-]", host) or len(host) > 253:
            raise DownloadError("refused", "the link's host is no host name")
        if not self._names(host):
            raise DownloadError("refused", f"{host} is not an allowed host")
        return url

    def permits(self, address: IPAddress, scheme: str = "https") -> bool:
        """Whether a connection to this address may be made."""
        inner = _embedded(address)
        if inner is not None:
            return self.permits(inner, scheme)
        public = address.is_global and not address.is_multicast
        return self._listed(address) or (public and scheme == "https")

    def _names(self, host: str) -> bool:
        address = _address(host)
        if address is not None:
            return self._listed(address)
        name = host.rstrip(".")
        names = (entry.lower() for entry in self.entries)
        return any(name.endswith(entry[1:]) if entry.startswith("*.") else name == entry for entry in names)

    def _listed(self, address: IPAddress) -> bool:
        networks = (_network(entry) for entry in self.entries)
        return any(network is not None and address in network for network in networks)

    def check_address(self, host: str, address_text: str, scheme: str) -> None:
        """Raises DownloadError (``refused``) unless a connection to the host at this IP address may be made."""
        address = ipaddress.ip_address(address_text.partition("%")[0])
        if not self.permits(address, scheme):
            why = "which is public, by http" if self.permits(address) else "which is not public"
            raise DownloadError("refused", f"{_bare(host)} leads to {address}, {why}")


def _bare(host: str | None) -> str:
    """A host without the brackets of an IPv6 address, in small letters."""
    return (host or "").removeprefix("[").removesuffix("]").lower()


def _address(host: str) -> IPAddress | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return None


def _embedded(address: IPAddress) -> IPAddress | None:
    """The IPv4 address that an IPv6 one stands for, if it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


# ------------------------------------------------------------------------------------------------------------ downloads


@dataclass(frozen=True, slots=True)
class DownloadSettings:
    """``deadline_seconds`` bounds a download with all its redirects and tries; ``max_bytes`` its size."""

    allowed: AllowedHosts
    deadline_seconds: float = 10.0
    max_bytes: int = 25 * 1024 * 1024
    concurrency: int = 8


def _no_headers(_link: str) -> Mapping[str, str]:
    return {}


class Downloads:
    """Fetches images. Thread-safe; made once for its settings by :func:`downloads`.

    ``clock`` (monotonic seconds), ``sleep`` and ``random`` steer the pauses between tries; sockets keep real time.
    """

    def __init__(
        self,
        settings: DownloadSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self.settings = settings
        self._clock, self._sleep, self._random = clock, sleep, random
        self._manager = urllib3.PoolManager(num_pools=16, maxsize=settings.concurrency, retries=False)
        self._manager.pool_classes_by_scheme = make_pools(settings.allowed.check_address)

    @contextlib.contextmanager
    def image(self, link: str, headers_for: Callable[[str], Mapping[str, str]] = _no_headers) -> Iterator[IO[bytes]]:
        """The whole image behind a link, to be read while the context lasts. Raises DownloadError.

        ``headers_for`` is asked for more headers at each hop, with that hop's URL. Tried again: no connection, a broken
        one, and what may pass (see Meaning).
        """
        deadline = self._clock() + self.settings.deadline_seconds
        with SpooledTemporaryFile(max_size=_MEMORY_BYTES) as content:
            for tries, pause in enumerate(full_jitter(*_WAITS, self._random), 1):
                try:
                    self._follow(link, headers_for, deadline, content)
                    break
                except _BrokenError as broken:
                    if tries == _MOST_TRIES or self._clock() + pause >= deadline:
                        raise DownloadError("download", f"{broken} ({tries} tries)") from None
                    self._sleep(pause)
                    content.seek(0)
                    content.truncate()
            content.seek(0)
            yield content

    def target(self, link: str, headers_for: Callable[[str], Mapping[str, str]] = _no_headers) -> str:
        """Where a link redirects to, by a HEAD that follows nothing; the link itself where it leads to no redirect, or
        where ``headers_for`` has nothing for it: then anyone may follow it. Both must be allowed. Raises DownloadError.
        """
        deadline = self._clock() + self.settings.deadline_seconds
        url = self.settings.allowed.check(link)
        headers = headers_for(url.url)
        if not headers:
            return link
        for tries, pause in enumerate(full_jitter(*_WAITS, self._random), 1):
            try:
                status, location = self._ask(url, headers, deadline)
                break
            except _BrokenError as broken:
                if tries == _MOST_TRIES or self._clock() + pause >= deadline:
                    raise DownloadError("download", f"{broken} ({tries} tries)") from None
                self._sleep(pause)
        if status in _REDIRECTS:
            try:
                target = urljoin(url.url, location)
            except ValueError:
                raise DownloadError("refused", "a redirect leads to something other than a URL") from None
            return self.settings.allowed.check(target).url
        if 200 <= status < 300:
            return link
        raise DownloadError("expired" if status in _GONE else "download", f"status {status}")

    def _ask(self, url: Url, headers: Mapping[str, str], deadline: float) -> tuple[int, str]:
        """The status and the Location of a HEAD."""
        left = deadline - self._clock()
        if left <= 0:
            raise _BrokenError("no answer in time")
        try:
            response = self._open(url, headers, left, method="HEAD")
            try:
                if read_status(response.status, response.headers) in (Meaning.AGAIN, Meaning.BACK_PRESSURE):
                    raise _BrokenError(f"status {response.status}")
                return response.status, response.headers.get("Location", "")
            finally:
                response.close()
        except (HTTPError, OSError) as error:
            raise _BrokenError(str(describe_failure(error))) from None

    def _follow(
        self, link: str, headers_for: Callable[[str], Mapping[str, str]], deadline: float, content: IO[bytes]
    ) -> None:
        """Write what ``link`` leads to into ``content``."""
        for _ in range(_MOST_REDIRECTS + 1):
            url = self.settings.allowed.check(link)
            left = deadline - self._clock()
            if left <= 0:
                raise _BrokenError("no complete answer in time")
            try:
                response = self._open(url, headers_for(url.url), left)
                try:
                    if response.status not in _REDIRECTS:
                        self._read(response, content)
                        return
                    link = urljoin(url.url, response.headers.get("Location", ""))
                finally:
                    response.close()
            except (HTTPError, OSError) as error:
                raise _BrokenError(str(describe_failure(error))) from None
            except ValueError:
                raise DownloadError("refused", "a redirect leads to something other than a URL") from None
        raise DownloadError("refused", f"more than {_MOST_REDIRECTS} redirects")

    def _open(
        self, url: Url, headers: Mapping[str, str], left: float, *, method: str = "GET"
    ) -> urllib3.BaseHTTPResponse:
        pool = self._manager.connection_from_host(url.host, url.port, url.scheme)
        return pool.urlopen(
            method,
            url.request_uri,
            # A compressed answer could be a thousand times what was sent; an image is compressed already.
            headers={"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "itel-cabinet", **headers},
            redirect=False,
            retries=False,
            preload_content=False,
            decode_content=False,
            timeout=Timeout(total=left),
        )

    def _read(self, response: urllib3.BaseHTTPResponse, content: IO[bytes]) -> None:
        if response.status in _GONE:
            raise DownloadError("expired", f"status {response.status}")
        if read_status(response.status, response.headers) in (Meaning.AGAIN, Meaning.BACK_PRESSURE):
            raise _BrokenError(f"status {response.status}")
        if response.status != 200:
            raise DownloadError("download", f"status {response.status}")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise DownloadError("wrong_type", "the answer is compressed, although that was not asked for")
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        is_image = kind.startswith("image/") and "svg" not in kind  # a drawing in SVG is a program
        if not is_image and kind not in _UNTYPED:
            raise DownloadError("wrong_type", "the answer is no image")
        most, size = self.settings.max_bytes, 0
        too_large = DownloadError("too_large", f"more than {most} bytes")
        if int(_digits(response.headers.get("Content-Length"))) > most:
            raise too_large
        for chunk in response.stream(_CHUNK, decode_content=False):
            if size == 0 and not is_image and not _IMAGE.match(chunk):
                raise DownloadError("wrong_type", "the answer has no type, and its content is no image")
            size += len(chunk)
            if size > most:
                raise too_large
            try:
                content.write(chunk)
            except OSError as error:
                raise DownloadError("no_room", f"no room for temporary files: {error.strerror or error}") from None
        if size == 0:
            raise DownloadError("wrong_type", "the answer is empty")


def _digits(text: str | None) -> str:
    return text if text and re.fullmatch(r"\d{1,18}", text, re.ASCII) else "0"


@once_per_process
def get_downloads(settings: DownloadSettings) -> Downloads:
    """This process's one downloader with these settings."""
    return Downloads(settings)
