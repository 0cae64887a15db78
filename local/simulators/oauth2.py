"""A simulator of an authorization server, which gives tokens to the clients of the simulators of ClaimX and iTel.

It runs on a port of its own, beside the API that demands its tokens:
``python -m itel_cabinet.local.simulators claimx --client ID:SECRET``, and likewise for iTel.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import parse_qs, unquote_plus

from itel_cabinet.local.simulators.simulator import Request, Response, Simulator, serve

__all__ = ["TOKEN_PATH", "OAuth2Simulator", "add_client_option", "serve_with_clients"]

TOKEN_PATH = "/oauth2/token"


class OAuth2Simulator(Simulator):
    """Client credentials as RFC 6749 has them: ``POST /oauth2/token`` with the client's id and secret in a Basic header
    or in the form.

    ``clients`` maps ids to secrets and may be changed at any time. A token is good for ``token_seconds``, unless it is
    revoked; give :meth:`accepts` to a simulator as its ``authority``. ``scopes`` are those that were asked for.
    """

    def __init__(
        self,
        clients: Mapping[str, str],
        *,
        port: int | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.time,
        token_seconds: float = 3600.0,
    ) -> None:
        super().__init__(port=port, seed=seed, clock=clock)
        self.clients = dict(clients)
        self.token_seconds = token_seconds
        self.scopes: list[str] = []
        self._expiries: dict[str, float] = {}

    @property
    def token_url(self) -> str:
        return self.url + TOKEN_PATH

    @property
    def asked(self) -> int:
        """How often a token was asked for, with any answer."""
        return self.calls[TOKEN_PATH]

    @property
    def tokens(self) -> list[str]:
        """The tokens that were given out and not revoked, expired ones too, in their order."""
        with self._lock:
            return list(self._expiries)

    def revoke(self) -> None:
        """Refuse from now on every token that was given out."""
        with self._lock:
            self._expiries.clear()

    def accepts(self, authorization: str | None) -> bool:
        """Whether an Authorization header holds a token that is good now."""
        scheme, _, token = (authorization or "").partition(" ")
        with self._lock:
            return scheme == "Bearer" and self.clock() < self._expiries.get(token, float("-inf"))

    def answer(self, request: Request) -> Response:
        """See the class."""
        if (request.method, request.path) != ("POST", TOKEN_PATH):
            return Response.refusal(404, f"no such path: {request.method} {request.path}")
        form = {name: values[-1] for name, values in parse_qs(request.body.decode("utf-8", "replace")).items()}
        client, secret = _client(request.headers.get("Authorization"), form)
        if client not in self.clients or not secrets.compare_digest(self.clients[client].encode(), secret.encode()):
            return Response.of(
                401,
                {"error": "invalid_client", "error_description": f"no client {client} with the secret {secret}"},
                **{"WWW-Authenticate": "Basic"},
            )
        if form.get("grant_type") != "client_credentials":
            return Response.of(400, {"error": "unsupported_grant_type"})
        token = secrets.token_urlsafe(24)
        with self._lock:
            self._expiries[token] = self.clock() + self.token_seconds
            self.scopes.append(form.get("scope", ""))
        return Response.of(
            200,
            {"access_token": token, "token_type": "Bearer", "expires_in": self.token_seconds},
            **{"Cache-Control": "no-store"},
        )


def _client(authorization: str | None, form: Mapping[str, str]) -> tuple[str, str]:
    scheme, _, encoded = (authorization or "").partition(" ")
    if scheme != "Basic":
        return form.get("client_id", ""), form.get("client_secret", "")
    try:
        client, _, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return unquote_plus(client), unquote_plus(secret)


def add_client_option(parser: argparse.ArgumentParser) -> None:
    """``--client``, for the command of a simulator that may demand tokens."""
    parser.add_argument(
        "--client",
        action="append",
        type=_id_and_secret,
        metavar="ID:SECRET",
        help="demand tokens, which this client gets at an OAuth2 endpoint beside the API; may be repeated",
    )


def _id_and_secret(text: str) -> tuple[str, str]:
    client, colon, secret = text.partition(":")
    if not client or not colon or not secret:
        raise argparse.ArgumentTypeError("must be ID:SECRET")
    return client, secret


def serve_with_clients(name: str, simulator: Simulator, clients: Sequence[tuple[str, str]] | None) -> None:
    """Run the simulator of ``name`` until it is ended; beside it, if there are clients, an authorization server whose
    tokens it demands."""
    authority = OAuth2Simulator(dict(clients or ()))
    if clients:
        simulator.authority = authority.accepts

    def tell() -> None:
        print(f"{name} simulator at {simulator.url}", flush=True)
        if clients:
            print(f"tokens at {authority.token_url}", flush=True)

    serve([simulator, authority] if clients else [simulator], tell)
