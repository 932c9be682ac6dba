"""TLS for a worker's interface and for what it asks of others. Certificates are read again when they change."""

from __future__ import annotations

import ssl
from pathlib import Path

from aiohttp import web

from streams.config import WorkerSettings
from streams.errors import ConfigError
from streams.log import get_logger

__all__ = ["Tls", "certified"]

log = get_logger(__name__)


class Tls:
    """A worker's certificate, and the authority that those of others are checked by.

    A worker shows its certificate to whoever asks it, and to those workers that it asks. Who asks may show one as well;
    one that the authority has not signed ends the connection.

    Args:
        certificate: The certificate, and those between it and the authority's; PEM.
        key: Its private key; PEM.
        authority: The certificates of the authority; PEM. None: clients are not asked for one, and other workers' are
            checked as a browser would.

    Raises:
        ConfigError: One of them cannot be read, or they do not fit together.
    """

    def __init__(self, certificate: Path, key: Path, authority: Path | None) -> None:
        self._files = (certificate, key)
        self._stamp = self._stamped()
        try:
            self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority)
            self.client = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=authority)
            self._load()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"The certificates cannot be used: {error} ({certificate}, {key}, {authority or 'no authority'}). Give "
                "PEM files (--tls-certificate, --tls-key, --tls-authority) that fit together."
            ) from error
        if authority is not None:
            self.server.verify_mode = ssl.CERT_OPTIONAL
            # Workers reach each other by addresses that a certificate seldom names; the authority is the fleet's own.
            self.client.check_hostname = False
        # Called at each greeting: what is read then is shown from the next one on.
        self.server.sni_callback = self._greeted

    @classmethod
    def of(cls, settings: WorkerSettings) -> Tls | None:
        """Give that of a worker's settings; None where it is to speak plain HTTP.

        Raises:
            ConfigError: They do not go together.
        """
        certificate, key, authority = settings.tls_certificate, settings.tls_key, settings.tls_authority
        if authority is None and (settings.admin_names or settings.read_certificates):
            raise ConfigError("To go by clients' certificates, name the authority that signs them (--tls-authority).")
        if certificate is None or key is None:
            if (certificate, key, authority) != (None, None, None):
                raise ConfigError("TLS needs a certificate and its key: --tls-certificate and --tls-key.")
            return None
        return cls(certificate, key, authority)

    def _greeted(self, _connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Read the files again where they have changed; what cannot be read changes nothing."""
        try:
            now = self._stamped()
            if now != self._stamp:
                self._load()
                self._stamp = now
                log.info("certificate.read", path=str(self._files[0]))
        except (OSError, ssl.SSLError, ConfigError) as error:
            log.warning("certificate.not_read", path=str(self._files[0]), why=str(error))

    def _load(self) -> None:
        for context in (self.server, self.client):
            context.load_cert_chain(*self._files)

    def _stamped(self) -> list[tuple[int, int]]:
        try:
            return [(found.st_mtime_ns, found.st_ino) for found in map(Path.stat, self._files)]
        except OSError as error:
            raise ConfigError(f"A certificate cannot be read: {error}.") from error


def certified(request: web.Request) -> frozenset[str]:
    """Give the names in the certificate that a client has shown, which the authority has signed; none where it has not.

    The subject's common name, and its alternative names.
    """
    shown = request.get_extra_info("peercert")
    if not shown:
        return frozenset()
    names = {value for part in shown.get("subject", ()) for kind, value in part if kind == "commonName"}
    return frozenset(names | {value for _, value in shown.get("subjectAltName", ())})
