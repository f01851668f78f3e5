"""Cliniko credentials, their encryption, and the rotation of encryption keys.

cliniko/shards.py decides which URL the credentials are sent to. Error messages continue the text "Organization 'x': ".
No message, repr or exception context contains plaintext, a token or a key. Errors are raised after the `except` block
of their cause, because the cause would become their context, and may contain such values.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NoReturn, cast

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import SecretStr

from cliniko_pipeline.errors import CredentialsDecryptionError, CredentialsFormatError, SettingsError

ENCRYPTED_DATA = "encrypted_data"
"""The only member of the stored JSON object."""

_TOKEN_VERSION = b"\x80"  # The first byte of every Fernet token.
_MAX_LAYERS = 2  # A token is base64, and may be encoded in base64 a second time.

# An API key is sent as the user name of HTTP Basic authentication, so it is visible ASCII without a colon.
_API_KEY = re.compile(r"[!-9;-~]{1,1024}")
_SHARD_SUFFIX = re.compile(r"-[A-Za-z]{2}[0-9]{1,2}\Z")
# The region is shown to operators, so the limit of its length excludes an API key that was pasted by mistake.
_REGION = re.compile(r"[A-Za-z0-9_-]{1,16}")

_SET_AGAIN = "; add the organization's credentials again"


@dataclass(frozen=True, slots=True)
class ClinikoCredentials:
    """One organization's access to Cliniko.

    Surrounding white space is removed, and the shard suffix is written in lower case. Raises CredentialsFormatError for
    a value that cannot be valid.
    """

    api_key: str = field(repr=False)
    """The API key as Cliniko shows it, with or without the shard suffix."""

    region: str | None = None
    """The shard, such as au4, if known."""

    api_url: str | None = None
    """The API's base URL, such as https://api.au4.cliniko.com/v1, if known; checked before use."""

    def __post_init__(self) -> None:
        # In a frozen dataclass, only object.__setattr__ can replace a value by its normal form.
        key = _SHARD_SUFFIX.sub(lambda suffix: suffix[0].lower(), self.api_key.strip())
        object.__setattr__(self, "api_key", key)
        object.__setattr__(self, "region", (self.region or "").strip() or None)
        object.__setattr__(self, "api_url", (self.api_url or "").strip() or None)
        if problem := self._problem():
            raise CredentialsFormatError(problem)

    def __reduce__(self) -> NoReturn:
        raise TypeError("Cliniko credentials are not pickled: that would store the API key unencrypted")

    def _problem(self) -> str | None:
        if not self.api_key:
            return f"the Cliniko credentials hold no API key{_SET_AGAIN}"
        if not _API_KEY.fullmatch(self.api_key):
            return (
                "the Cliniko API key contains white space or other characters that no Cliniko key has;"
                " copy the complete key from Cliniko again"
            )
        if self.region is not None and not _REGION.fullmatch(self.region):
            return "the Cliniko credentials' region is not a shard such as au4; correct it or leave it out"
        if self.api_url is not None and not _is_shown_safely(self.api_url):
            return (
                "the Cliniko credentials' api_url is not a plain base URL such as"
                " https://api.au4.cliniko.com/v1, with no user, query or fragment; correct it or leave it out"
            )
        return None


class Vault:
    """A set of Fernet keys. The first key encrypts, and all keys decrypt.

    Raises SettingsError if there is no key, or if a value is not a Fernet key.
    """

    def __init__(self, keys: Iterable[SecretStr | str]) -> None:
        fernets = [_fernet(key) for key in keys]
        if not fernets:
            raise SettingsError("There is no encryption key; set CREDENTIALS_ENCRYPTION_KEY.")
        self._newest = fernets[0]
        self._all = MultiFernet(fernets)
        self._key_count = len(fernets)

    def __repr__(self) -> str:
        return f"Vault({self._key_count} keys)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A vault is not pickled: that would store its keys unencrypted")

    def encrypt(self, credentials: ClinikoCredentials) -> dict[str, str]:
        """Return the value to store: `{"encrypted_data": base64 of a Fernet token}`."""
        members = {
            "api_key": credentials.api_key,
            "region": credentials.region,
            "api_url": credentials.api_url,
        }
        plaintext = json.dumps({name: value for name, value in members.items() if value is not None})
        return _stored(self._newest.encrypt(plaintext.encode()))

    def decrypt(self, stored: object) -> ClinikoCredentials:
        """Return the credentials in a value of the column `credentials_encrypted`.

        `stored` is an object with `encrypted_data`, the same object as a JSON string, or a string with a Fernet token
        or the base64 of a token. Both alphabets of base64 are accepted, with or without padding and line breaks.

        Raises CredentialsDecryptionError if no key fits, and CredentialsFormatError for other shapes and contents.
        """
        return _credentials(self._open(_token(stored)))

    def encrypt_text(self, text: str) -> dict[str, str]:
        """Return the value to store for a secret other than credentials, in the same shape."""
        return _stored(self._newest.encrypt(text.encode()))

    def decrypt_text(self, stored: object) -> str:
        """Return the text in a value that `encrypt_text` returned.

        Raises CredentialsDecryptionError if no key fits, and CredentialsFormatError for other shapes.
        """
        token = _token_in(stored)
        if token is None:
            raise CredentialsFormatError("the stored secret is not a Fernet token; create a new one")
        return self._open(token, "secret").decode(errors="replace")

    def rotate(self, stored: object) -> dict[str, str]:
        """Return the plaintext of `stored`, encrypted again with the first key.

        Members that other programs added to the plaintext are kept. Raises CredentialsDecryptionError and
        CredentialsFormatError.
        """
        return _stored(self._newest.encrypt(self._open(_token(stored))))

    def is_current(self, stored: object) -> bool:
        """Return whether `stored` has the format of `encrypt` and uses the first key."""
        token = _token_in(stored)
        return token is not None and stored == _stored(token) and _opens(self._newest, token)

    def _open(self, token: bytes, what: str = "Cliniko credentials") -> bytes:
        try:
            return self._all.decrypt(token)
        except InvalidToken:
            pass
        raise CredentialsDecryptionError(
            f"the stored {what} cannot be decrypted with any configured key;"
            " CREDENTIALS_ENCRYPTION_KEY must hold the key that encrypted them (to rotate keys: the new"
            " key first, the old keys after it, comma-separated)"
        )


def _fernet(key: SecretStr | str) -> Fernet:
    try:
        return Fernet(key.get_secret_value() if isinstance(key, SecretStr) else key)
    except ValueError:
        pass
    raise SettingsError("CREDENTIALS_ENCRYPTION_KEY holds something that is not a Fernet key; correct it.")


def _opens(fernet: Fernet, token: bytes) -> bool:
    try:
        fernet.decrypt(token)
    except InvalidToken:
        return False
    return True


def _stored(token: bytes) -> dict[str, str]:
    return {ENCRYPTED_DATA: base64.b64encode(token).decode("ascii")}


def _token(stored: object) -> bytes:
    token = _token_in(stored)
    if token is None:
        raise CredentialsFormatError(
            "the stored Cliniko credentials are neither a Fernet token nor an object with one in"
            f" {ENCRYPTED_DATA}{_SET_AGAIN}"
        )
    return token


def _token_in(stored: object) -> bytes | None:
    """Return the Fernet token in a stored value of any accepted shape, or None without one."""
    layer = _armoured(stored)
    for _ in range(_MAX_LAYERS):
        layer = _unbase64(layer)
        if layer.startswith(_TOKEN_VERSION):
            return base64.urlsafe_b64encode(layer)
    return None


def _armoured(stored: object) -> bytes:
    """Return the base64 text in `stored`, or b"" for an unknown shape."""
    if isinstance(stored, str) and stored.lstrip().startswith("{"):
        stored = _json_or_none(stored)
    if isinstance(stored, dict):
        stored = cast("dict[object, object]", stored).get(ENCRYPTED_DATA)
    return stored.encode("ascii", errors="replace") if isinstance(stored, str) else b""


def _unbase64(text: bytes) -> bytes:
    """Decode base64 of either alphabet, padded or not; return b"" for any other text."""
    digits = b"".join(text.split()).replace(b"-", b"+").replace(b"_", b"/")
    try:
        return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except binascii.Error:
        return b""


def _credentials(plaintext: bytes) -> ClinikoCredentials:
    members = _json_or_none(plaintext)
    if not isinstance(members, dict):
        raise CredentialsFormatError(f"the decrypted Cliniko credentials are not a JSON object{_SET_AGAIN}")
    named = cast("dict[str, object]", members)
    return ClinikoCredentials(
        api_key=_text(named, "api_key"), region=_text(named, "region"), api_url=_text(named, "api_url")
    )


def _text(members: dict[str, object], name: str) -> str:
    value = members.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CredentialsFormatError(f"the decrypted Cliniko credentials' {name} is not text{_SET_AGAIN}")
    return value


def _json_or_none(text: str | bytes) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_shown_safely(api_url: str) -> bool:
    return len(api_url) <= 2048 and api_url.isprintable() and not any(mark in api_url for mark in " @?#")
