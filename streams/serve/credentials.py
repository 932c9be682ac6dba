"""What librdkafka's settings say of a connection, said to Faust: TLS, and SASL by PLAIN, SCRAM or OAUTHBEARER."""

from __future__ import annotations

import base64
import json
import re
import ssl
import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import faust
from aiokafka.abc import AbstractTokenProvider

from streams.config import KafkaSettings
from streams.errors import BrokerUnavailable, ConfigError

__all__ = ["faust_arguments"]

_PASSWORDS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_LIFE_S = 3600
_ASK_S = 10.0
_BEFORE_ITS_END = 0.8
"""At which part of its life a token is replaced."""


def faust_arguments(kafka: KafkaSettings) -> Mapping[str, Any]:
    """Say to Faust what the librdkafka settings say.

    Raises:
        ConfigError: A setting that matters for the connection has no counterpart.
    """
    given = dict(kafka.kafka)
    hosts = ";".join(f"kafka://{one.strip()}" for one in kafka.bootstrap_servers.split(","))
    protocol = str(given.get("security.protocol", "plaintext")).lower()
    if protocol == "plaintext":
        return {"broker": hosts}
    context = _context(given) if protocol in ("ssl", "sasl_ssl") else None
    if protocol == "ssl":
        return {"broker": hosts, "broker_credentials": faust.SSLCredentials(context)}
    mechanism = str(given.get("sasl.mechanism", given.get("sasl.mechanisms", "PLAIN"))).upper()
    if mechanism == "OAUTHBEARER":
        tokens = _tokens(given)
        return {"broker": hosts, "broker_credentials": faust.OAuthCredentials(oauth_cb=tokens, ssl_context=context)}
    if mechanism not in _PASSWORDS:
        raise ConfigError(
            f"sasl.mechanism {mechanism!r} is not known to the client by which workers elect their leader; it knows "
            f"{', '.join(_PASSWORDS)} and OAUTHBEARER."
        )
    return {
        "broker": hosts,
        "broker_credentials": faust.SASLCredentials(
            username=str(given.get("sasl.username", "")),
            password=str(given.get("sasl.password", "")),
            mechanism=mechanism,
            ssl_context=context,
        ),
    }


def _context(given: Mapping[str, Any]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=given.get("ssl.ca.location"), cadata=given.get("ssl.ca.pem"))
        if given.get("ssl.certificate.location"):
            context.load_cert_chain(
                given["ssl.certificate.location"], given.get("ssl.key.location"), given.get("ssl.key.password")
            )
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"The TLS settings cannot be used: {error}.") from error
    if str(given.get("ssl.endpoint.identification.algorithm", "https")).lower() == "none":
        context.check_hostname = False
    if str(given.get("enable.ssl.certificate.verification", "true")).lower() == "false":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _tokens(given: Mapping[str, Any]) -> AbstractTokenProvider:
    """Give what fetches tokens, as librdkafka would: from an OpenID provider, or made here without a signature."""
    if str(given.get("sasl.oauthbearer.method", "default")).lower() == "oidc":
        missing = [key for key in (_URL, _CLIENT, _SECRET) if not given.get(key)]
        if missing:
            raise ConfigError(f"sasl.oauthbearer.method is oidc, and these are missing: {', '.join(missing)}.")
        return _Provided(given)
    if str(given.get("enable.sasl.oauthbearer.unsecure.jwt", "false")).lower() == "true":
        return _Unsecured(str(given.get("sasl.oauthbearer.config", "")))
    raise ConfigError(
        "sasl.mechanism is OAUTHBEARER, and nothing says where tokens are from: set sasl.oauthbearer.method=oidc with "
        f"{_URL}, {_CLIENT} and {_SECRET}."
    )


_URL = "sasl.oauthbearer.token.endpoint.url"
_CLIENT = "sasl.oauthbearer.client.id"
_SECRET = "sasl.oauthbearer.client.secret"


class _Provided(AbstractTokenProvider):  # type: ignore[misc]
    """Tokens of an OpenID provider, by client credentials (RFC 6749, 4.4); each is used for most of its life."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._url = str(given[_URL])
        self._login = aiohttp.BasicAuth(str(given[_CLIENT]), str(given[_SECRET]))
        self._scope = str(given.get("sasl.oauthbearer.scope", ""))
        self._context = _context({"ssl.ca.location": given.get("https.ca.location")})
        self._token = ""
        self._until_s = 0.0

    async def token(self) -> str:
        """Give one that is valid now.

        Raises:
            BrokerUnavailable: The provider gives none.
        """
        if time.monotonic() < self._until_s:
            return self._token
        form = {"grant_type": "client_credentials", **({"scope": self._scope} if self._scope else {})}
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ASK_S)) as session,
                session.post(self._url, data=form, auth=self._login, ssl=self._context) as answer,
            ):
                answer.raise_for_status()
                found = await answer.json(content_type=None)
                self._token = str(found["access_token"])
                life_s = float(found.get("expires_in", _LIFE_S))
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
            why = str(error) or type(error).__name__
            raise BrokerUnavailable(f"{self._url} gave no token for Kafka: {why}.") from error
        self._until_s = time.monotonic() + _BEFORE_ITS_END * life_s
        return self._token


class _Unsecured(AbstractTokenProvider):  # type: ignore[misc]
    """Tokens without a signature, which only a broker for development takes (KIP-255)."""

    def __init__(self, config: str) -> None:
        self._claims = dict(re.findall(r"(\w+)=(\S+)", config))

    async def token(self) -> str:
        """Make one."""
        now_s = time.time()
        life_s = float(self._claims.get("lifeSeconds", _LIFE_S))
        claims: dict[str, Any] = {"sub": self._claims.get("principal", ""), "iat": now_s, "exp": now_s + life_s}
        if "scope" in self._claims:
            claims[self._claims.get("scopeClaimName", "scope")] = self._claims["scope"].split(",")
        return f"{_part({'alg': 'none'})}.{_part(claims)}."


def _part(what: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(what).encode()).rstrip(b"=").decode()
