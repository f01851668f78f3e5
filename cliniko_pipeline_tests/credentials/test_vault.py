"""Tests of the vault: stored formats, rotation, and errors without secrets."""

import base64
import copy
import json
import pickle
import traceback
from collections.abc import Callable

import pytest
from cryptography.fernet import Fernet
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from cliniko_pipeline.credentials.vault import ClinikoCredentials, Vault
from cliniko_pipeline.errors import CredentialsDecryptionError, CredentialsFormatError, SettingsError
from cliniko_pipeline_tests.support.properties import examples

NEW_KEY = base64.urlsafe_b64encode(bytes(range(32))).decode()
OLD_KEY = base64.urlsafe_b64encode(bytes(range(32, 64))).decode()
FOREIGN_KEY = base64.urlsafe_b64encode(bytes(range(64, 96))).decode()

API_KEY = "MS0xMjM0NTY3ODkwLXRvcHNlY3JldA-au4"
CREDENTIALS = ClinikoCredentials(API_KEY, "au4", "https://api.au4.cliniko.com/v1")
PLAINTEXT = json.dumps({"api_key": API_KEY, "region": "au4", "api_url": "https://api.au4.cliniko.com/v1"})

SHAPES: dict[str, Callable[[bytes], object]] = {
    "an object": lambda token: {"encrypted_data": base64.b64encode(token).decode()},
    "an object as a string": lambda token: json.dumps({"encrypted_data": base64.b64encode(token).decode()}),
    "base64 of a token": lambda token: base64.b64encode(token).decode(),
    "a token": lambda token: token.decode(),
}

visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=":"), min_size=1)
url_text = st.text(st.characters(min_codepoint=0x21, exclude_characters="@?#", exclude_categories=("C", "Z")))
credentials = st.builds(
    ClinikoCredentials,
    api_key=visible,
    region=st.none() | st.from_regex(r"[a-z]{2}[0-9]{1,2}", fullmatch=True),
    api_url=st.none() | url_text,
)
shapes = st.sampled_from(sorted(SHAPES))


def token_of(plaintext: str | bytes, key: str = NEW_KEY) -> bytes:
    return Fernet(key).encrypt(plaintext.encode() if isinstance(plaintext, str) else plaintext)


def all_texts(error: BaseException) -> str:
    """Return the traceback of an error and of all errors chained to it."""
    texts = "".join(traceback.format_exception(error))
    for other in (error.__cause__, error.__context__):
        if other is not None:
            texts += repr(other) + repr(vars(other)) + all_texts(other)
    return texts


@given(credentials, shapes, st.sampled_from([NEW_KEY, OLD_KEY]))
@settings(max_examples=examples(15))
def test_credentials_are_decrypted_from_any_shape_and_rotated(given_credentials, shape, key):
    vault = Vault([NEW_KEY, OLD_KEY])
    written = Vault([key]).encrypt(given_credentials)
    stored = SHAPES[shape](base64.b64decode(written["encrypted_data"]))

    assert vault.decrypt(stored) == given_credentials
    rotated = vault.rotate(stored)
    assert vault.is_current(rotated)
    assert Vault([NEW_KEY]).decrypt(rotated) == given_credentials


@given(shapes, st.sampled_from(["", " \n", "\t \r\n"]), st.booleans(), st.booleans(), st.binary(max_size=80))
@settings(max_examples=examples(25))
def test_base64_may_have_any_alphabet_padding_and_white_space(shape, around, is_standard, is_padded, filler):
    token = token_of(json.dumps({"api_key": API_KEY, "filler": filler.hex()}))
    if is_standard:
        token = base64.b64encode(base64.urlsafe_b64decode(token))
    stored = SHAPES[shape](token if is_padded else token.rstrip(b"="))
    text = stored["encrypted_data"] if isinstance(stored, dict) else stored
    text = around + (text if is_padded else text.rstrip("=")) + around
    assert Vault([NEW_KEY]).decrypt({"encrypted_data": text} if isinstance(stored, dict) else text).api_key == API_KEY


def test_base64_may_have_line_breaks():
    stored = base64.encodebytes(token_of(PLAINTEXT)).decode()
    assert stored.count("\n") > 1
    assert Vault([NEW_KEY]).decrypt(stored) == CREDENTIALS


def test_encrypted_credentials_are_base64_under_the_first_key():
    for given_credentials, plaintext in (
        (CREDENTIALS, PLAINTEXT),
        (ClinikoCredentials(API_KEY), f'{{"api_key": "{API_KEY}"}}'),
    ):
        stored = Vault([SecretStr(NEW_KEY), OLD_KEY]).encrypt(given_credentials)
        assert list(stored) == ["encrypted_data"]
        token = base64.b64decode(stored["encrypted_data"], validate=True)
        assert json.loads(Fernet(NEW_KEY).decrypt(token)) == json.loads(plaintext)


def test_rotation_keeps_the_plaintext_unchanged():
    plaintext = json.dumps({"api_key": API_KEY, "business_id": "77", "region": ""})
    rotated = Vault([NEW_KEY, OLD_KEY]).rotate(SHAPES["a token"](token_of(plaintext, OLD_KEY)))
    assert Fernet(NEW_KEY).decrypt(base64.b64decode(rotated["encrypted_data"])).decode() == plaintext


@pytest.mark.parametrize("shape", SHAPES)
def test_only_an_object_under_the_first_key_is_current(shape):
    vault = Vault([NEW_KEY, OLD_KEY])
    assert vault.is_current(SHAPES[shape](token_of(PLAINTEXT))) is (shape == "an object")
    assert not vault.is_current(SHAPES[shape](token_of(PLAINTEXT, OLD_KEY)))


@pytest.mark.parametrize("shape", SHAPES)
def test_wrong_key_error_names_the_setting_but_no_token(shape):
    vault, stored = Vault([NEW_KEY, OLD_KEY]), SHAPES[shape](token_of(PLAINTEXT, FOREIGN_KEY))
    for use in (vault.decrypt, vault.rotate):
        with pytest.raises(CredentialsDecryptionError, match="CREDENTIALS_ENCRYPTION_KEY must hold the key") as caught:
            use(stored)
        assert caught.value.__context__ is None
        assert (stored["encrypted_data"] if isinstance(stored, dict) else stored) not in all_texts(caught.value)
    assert not vault.is_current(stored)


@given(shapes, st.data())
@settings(max_examples=examples(25))
def test_damaged_token_is_refused(shape, data):
    raw = bytearray(base64.urlsafe_b64decode(token_of(PLAINTEXT)))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises((CredentialsDecryptionError, CredentialsFormatError)):
        Vault([NEW_KEY]).decrypt(SHAPES[shape](base64.urlsafe_b64encode(bytes(raw))))
    token = token_of(PLAINTEXT)
    with pytest.raises((CredentialsDecryptionError, CredentialsFormatError)):
        Vault([NEW_KEY]).decrypt(SHAPES[shape](token[: data.draw(st.integers(0, len(token) - 8))]))


NO_TOKENS = [
    None, 42, [], b"gAAAAA", {}, {"encrypted_data": {"encrypted_data": "x"}}, "", "{", '{"a":' * 100_000,
    "not base64 at all!", "caf\u00e9", "\ud800", PLAINTEXT, base64.b64encode(PLAINTEXT.encode()).decode(),
    base64.b64encode(base64.b64encode(base64.b64encode(b"\x80" + b"0" * 100))).decode(),
]  # fmt: skip


@pytest.mark.parametrize("stored", NO_TOKENS, ids=lambda stored: repr(stored)[:30])
def test_value_of_another_shape_is_a_format_error(stored):
    vault = Vault([NEW_KEY])
    for use in (vault.decrypt, vault.rotate):
        with pytest.raises(CredentialsFormatError, match="neither a Fernet token nor") as caught:
            use(stored)
        assert caught.value.__context__ is None
        assert API_KEY not in all_texts(caught.value)
    assert not vault.is_current(stored)


SECRET = "tOpSeCrEt"


@pytest.mark.parametrize(
    "plaintext",
    [
        b"\xff\xfe\x00" + SECRET.encode(),
        f'["{SECRET}"]',
        "[" * 100_000 + SECRET,
        "{}",
        '{"api_key": "  "}',
        '{"api_key": 12345}',
        *(f'{{"api_key": "{SECRET}{end}"}}' for end in (" au4", "\\u0000", "\\u00e9", f":{SECRET}", SECRET * 200)),
        f'{{"api_key": "{SECRET}", "region": 4}}',
        f'{{"api_key": "{SECRET}", "region": "{SECRET * 3}"}}',
        f'{{"api_key": "{SECRET}", "api_url": ["x"]}}',
        f'{{"api_key": "{SECRET}", "api_url": "https://api.au4.cliniko.com/v1?key={SECRET}"}}',
        f'{{"api_key": "{SECRET}", "api_url": "https://api.au4.cliniko.com/\\r\\nX: {SECRET}"}}',
    ],
    ids=lambda plaintext: repr(plaintext)[:60],
)
def test_invalid_plaintext_is_a_format_error_that_hides_it(plaintext):
    with pytest.raises(CredentialsFormatError) as caught:
        Vault([NEW_KEY]).decrypt(SHAPES["an object"](token_of(plaintext)))
    texts = all_texts(caught.value)
    assert SECRET not in texts
    assert NEW_KEY not in texts
    assert "\n" not in str(caught.value)
    assert f"Organization 'x': {caught.value}".startswith("Organization 'x': the ")


def test_credentials_are_stripped_and_blank_options_are_none():
    assert ClinikoCredentials(f" {API_KEY}\r\n", "  ", " ") == ClinikoCredentials(API_KEY, None, None)
    assert ClinikoCredentials(API_KEY, " au4 ", "").region == "au4"
    assert ClinikoCredentials("\tMS0xLWKEY-AU4\xa0\n").api_key == "MS0xLWKEY-au4"


def test_secrets_are_in_no_text_form():
    for form in (repr(CREDENTIALS), f"{CREDENTIALS}"):
        assert API_KEY not in form
        assert "au4" in form
    assert repr(Vault([NEW_KEY, OLD_KEY])) == "Vault(2 keys)"


@pytest.mark.parametrize("secret_holder", [CREDENTIALS, Vault([NEW_KEY])])
def test_credentials_and_vaults_are_not_pickled(secret_holder):
    for write in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            write(secret_holder)


@pytest.mark.parametrize("keys", [[], ["tooshort"], [NEW_KEY, NEW_KEY[:-2]], ["caf\u00e9" * 11]], ids=range(4))
def test_malformed_key_is_a_settings_error_that_hides_it(keys):
    with pytest.raises(SettingsError, match="CREDENTIALS_ENCRYPTION_KEY") as caught:
        Vault(keys)
    assert caught.value.__context__ is None
    assert not any(key in all_texts(caught.value) for key in keys)


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=examples(20))
def test_text_is_decrypted_also_after_a_rotation(text):
    stored = Vault([OLD_KEY]).encrypt_text(text)
    assert Vault([OLD_KEY]).decrypt_text(stored) == text
    assert Vault([NEW_KEY]).decrypt_text(Vault([NEW_KEY, OLD_KEY]).rotate(stored)) == text
    assert len(text) < 8 or text not in str(stored)


@pytest.mark.parametrize("stored", [None, {"encrypted_data": "eA=="}])
def test_value_without_encrypted_text_is_a_format_error(stored):
    vault = Vault([NEW_KEY])
    with pytest.raises(CredentialsFormatError, match="the stored secret is not a Fernet token"):
        vault.decrypt_text(stored)
    with pytest.raises(CredentialsDecryptionError, match="the stored secret cannot be decrypted"):
        vault.decrypt_text(Vault([FOREIGN_KEY]).encrypt_text("x"))
