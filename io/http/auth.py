"""How a caller authenticates: written by reference, resolved where the job's workers run."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote_plus

from itel_cabinet.io.http.urls import check_url
from itel_cabinet.io.secrets import SecretRef, UnresolvedSecretError

__all__ = ["Auth", "Credentials", "check_header_name"]


@dataclass(frozen=True, slots=True)
class Credentials:
    """Resolved secrets: the headers to send, the fields of a form that asks for a token, and every text that must not
    be seen. None is in its repr."""

    headers: Mapping[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    form: Mapping[str, str] = field(default_factory=dict, repr=False)

    def redact(self, text: str) -> str:
        """``text`` with each secret replaced by ``[secret]``: some servers echo the request in their errors."""
        for secret in self.secrets:
            text = text.replace(secret, "[secret]")
        return text


@dataclass(frozen=True, slots=True)
class Auth:
    """How to authenticate, by reference. Written ``none``, ``bearer:REF``, ``basic:REF:REF``, ``api_key:HEADER:REF`` or
    ``oauth2:TOKEN_URL:REF:REF[:scope=SCOPE]``.

    The references of ``oauth2`` lead to the client's id and secret; ``scope`` may hold several scopes, with a space
    between. Written ``oauth2_post:``, id and secret are fields of the form, for token endpoints that read them only
    there.
    """

    scheme: Literal["none", "bearer", "basic", "api_key", "oauth2", "oauth2_post"]
    header: str = "Authorization"
    refs: tuple[SecretRef, ...] = ()
    token_url: str = ""
    scope: str = ""

    @property
    def is_oauth2(self) -> bool:
        """Whether calls bear a token, which the secrets only ask for."""
        return bool(self.token_url)

    @classmethod
    def parse(cls, text: str) -> Auth:
        """Read the written form. Raises ValueError, which says what is expected but never quotes what may be a
        secret."""
        scheme, _, rest = text.partition(":")
        scope = ""
        is_oauth2 = scheme in ("oauth2", "oauth2_post")
        if is_oauth2:
            rest, named, scope = rest.partition(":scope=")
            if named and not re.fullmatch(r"[\x21\x23-\x5b\x5d-\x7e]+( [\x21\x23-\x5b\x5d-\x7e]+)*", scope):
                raise ValueError("the scope of oauth2 must be words of ASCII with one space between")
        # A reference holds a colon itself, so the parts are split at what each begins with.
        parts = re.split(r":(?=(?:env|file):)", rest) if rest else []
        if scheme == "none" and not parts:
            return cls("none")
        if scheme == "bearer" and len(parts) == 1:
            return cls("bearer", refs=(SecretRef.parse(parts[0]),))
        if scheme == "basic" and len(parts) == 2:
            return cls("basic", refs=(SecretRef.parse(parts[0]), SecretRef.parse(parts[1])))
        if scheme == "api_key" and len(parts) == 2:
            return cls("api_key", check_header_name(parts[0]), (SecretRef.parse(parts[1]),))
        if is_oauth2 and len(parts) == 3:
            refs = (SecretRef.parse(parts[1]), SecretRef.parse(parts[2]))
            return cls(
                "oauth2" if scheme == "oauth2" else "oauth2_post",
                refs=refs,
                token_url=_token_url(parts[0]),
                scope=scope,
            )
        raise ValueError(
            "must be none, bearer:REF, basic:REF:REF, api_key:HEADER:REF or oauth2:TOKEN_URL:REF:REF[:scope=SCOPE] "
            "(or oauth2_post:...), where REF is env:NAME or file:PATH (what was given is not shown: it may be a secret)"
        )

    def resolve(self) -> Credentials:
        """Read the secrets now; for ``oauth2`` those that ask for a token. Raises UnresolvedSecretError."""
        # In base64 or a form any text can be sent, in UTF-8 (RFC 7617, 2.1).
        encoded = self.scheme not in ("bearer", "api_key")
        values = tuple(ref.resolve(any_text=encoded) for ref in self.refs)
        if self.scheme == "none":
            return Credentials({}, ())
        if self.scheme == "api_key":
            return Credentials({self.header: values[0]}, values)
        if self.scheme == "bearer":
            return Credentials({self.header: f"Bearer {values[0]}"}, values)
        secret = values[1]
        if self.scheme == "oauth2_post":
            return Credentials({}, (secret,), {"client_id": values[0], "client_secret": secret})
        if self.scheme == "oauth2":
            # The one way that every token endpoint must know (RFC 6749, 2.3.1), which has both percent-encoded first.
            values = tuple(quote_plus(value) for value in values)
        elif ":" in values[0]:
            raise UnresolvedSecretError(f"{self.refs[0]} holds a colon: no user name of basic authentication can")
        token = base64.b64encode(":".join(values).encode()).decode()
        return Credentials({self.header: f"Basic {token}"}, (token, secret, values[1]))


def _token_url(text: str) -> str:
    try:
        return check_url(text, query=True)
    except ValueError:
        raise ValueError("the token URL of oauth2 must be http(s)://HOST[:PORT][/PATH], without a user") from None


def check_header_name(name: str) -> str:
    """``name``, if it can be an HTTP header's; else ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
        raise ValueError("a header's name may hold letters, digits and -")
    return name
