"""The vault: every stored shape is decrypted, nothing else is, and no error reveals a secret."""

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
    """Return all that a log could hold of an error: its traceback and the errors chained to it."""
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


@given(
    shapes,
    st.sampled_from(["", " ", "\n", "\t \r\n"]),
    st.booleans(),
    st.booleans(),
    st.binary(min_size=0, max_size=80),
)
@settings(max_examples=examples(25))
def test_base64_may_have_any_alphabet_padding_and_white_space(shape, around, standard, padded, filler):
    plaintext = json.dumps({"api_key": API_KEY, "filler": filler.hex()})
    token = token_of(plaintext)
    if standard:
        token = base64.b64encode(base64.urlsafe_b64decode(token))
    stored = SHAPES[shape](token if padded else token.rstrip(b"="))
    if isinstance(stored, dict):
        text = stored["encrypted_data"]
        stored = {"encrypted_data": around + (text if padded else text.rstrip("=")) + around}
    else:
        stored = around + (stored if padded else stored.rstrip("=")) + around

    assert Vault([NEW_KEY]).decrypt(stored).api_key == API_KEY


def test_base64_may_have_line_breaks():
    stored = base64.encodebytes(token_of(PLAINTEXT)).decode()
    assert stored.count("\n") > 1
    assert Vault([NEW_KEY]).decrypt(stored) == CREDENTIALS


def test_encrypted_credentials_are_an_object_with_base64():
    stored = Vault([NEW_KEY]).encrypt(CREDENTIALS)
    assert list(stored) == ["encrypted_data"]
    plaintext = Fernet(NEW_KEY).decrypt(base64.b64decode(stored["encrypted_data"], validate=True))
    assert json.loads(plaintext) == json.loads(PLAINTEXT)
    without_options = Vault([NEW_KEY]).encrypt(ClinikoCredentials(API_KEY))["encrypted_data"]
    assert json.loads(Fernet(NEW_KEY).decrypt(base64.b64decode(without_options))) == {"api_key": API_KEY}


def test_first_key_encrypts():
    stored = Vault([NEW_KEY, OLD_KEY]).encrypt(CREDENTIALS)
    assert Vault([NEW_KEY]).decrypt(stored) == CREDENTIALS
    with pytest.raises(CredentialsDecryptionError):
        Vault([OLD_KEY]).decrypt(stored)
    assert Vault([SecretStr(NEW_KEY)]).decrypt(Vault([NEW_KEY]).encrypt(CREDENTIALS)) == CREDENTIALS


def test_rotation_keeps_the_plaintext_unchanged():
    plaintext = json.dumps({"api_key": API_KEY, "business_id": "77", "region": ""})
    rotated = Vault([NEW_KEY, OLD_KEY]).rotate(SHAPES["a token"](token_of(plaintext, OLD_KEY)))
    assert Fernet(NEW_KEY).decrypt(base64.b64decode(rotated["encrypted_data"])).decode() == plaintext


@pytest.mark.parametrize("shape", SHAPES)
def test_only_an_object_under_the_first_key_is_current(shape):
    vault = Vault([NEW_KEY, OLD_KEY])
    assert vault.decrypt(SHAPES[shape](token_of(PLAINTEXT))) == CREDENTIALS
    assert vault.is_current(SHAPES[shape](token_of(PLAINTEXT))) is (shape == "an object")
    assert not vault.is_current(SHAPES[shape](token_of(PLAINTEXT, OLD_KEY)))


@pytest.mark.parametrize("shape", SHAPES)
def test_wrong_key_error_names_the_setting_but_no_token(shape):
    stored = SHAPES[shape](token_of(PLAINTEXT, FOREIGN_KEY))
    for use in (Vault([NEW_KEY, OLD_KEY]).decrypt, Vault([NEW_KEY, OLD_KEY]).rotate):
        with pytest.raises(CredentialsDecryptionError, match="CREDENTIALS_ENCRYPTION_KEY must hold the key") as caught:
            use(stored)
        assert caught.value.__context__ is None
        assert (stored["encrypted_data"] if isinstance(stored, dict) else stored) not in all_texts(caught.value)
    assert not Vault([NEW_KEY]).is_current(stored)


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


@pytest.mark.parametrize(
    "stored",
    [
        None,
        42,
        [],
        b"gAAAAA",
        {},
        {"encrypted_data": None},
        {"encrypted_data": ""},
        {"encrypted_data": {"encrypted_data": "x"}},
        "",
        "{",
        "{}",
        '{"a":' * 100_000,
        "not base64 at all!",
        "caf\u00e9",
        "\ud800",
        "null",
        PLAINTEXT,
        base64.b64encode(PLAINTEXT.encode()).decode(),
        "A" * 1_000_000,
        base64.b64encode(base64.b64encode(base64.b64encode(b"\x80" + b"0" * 100))).decode(),
    ],
    ids=lambda stored: repr(stored)[:30],
)
def test_value_of_another_shape_is_a_format_error(stored):
    vault = Vault([NEW_KEY])
    for use in (vault.decrypt, vault.rotate):
        with pytest.raises(CredentialsFormatError, match="neither a Fernet token nor") as caught:
            use(stored)
        assert caught.value.__context__ is None
        assert API_KEY not in all_texts(caught.value)
    assert not vault.is_current(stored)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["encrypted_data", "x"]), inner),
    max_leaves=8,
)


@given(json_values)
@settings(max_examples=examples(25))
def test_any_json_value_is_a_credentials_error(stored):
    vault = Vault([NEW_KEY])
    with pytest.raises((CredentialsFormatError, CredentialsDecryptionError)):
        vault.decrypt(stored)
    assert not vault.is_current(stored)


SECRET = "tOpSeCrEt"


@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        b"\xff\xfe\x00" + SECRET.encode(),
        SECRET,
        f'["{SECRET}"]',
        "[" * 100_000 + SECRET,
        "{}",
        f'{{"api_key": null, "x": "{SECRET}"}}',
        '{"api_key": "  "}',
        '{"api_key": 12345}',
        f'{{"api_key": "{SECRET} au4"}}',
        f'{{"api_key": "{SECRET}\\u0000"}}',
        f'{{"api_key": "{SECRET}\\u00e9"}}',
        f'{{"api_key": "{SECRET}:{SECRET}"}}',
        f'{{"api_key": "{SECRET * 200}"}}',
        f'{{"api_key": "{SECRET}", "region": 4}}',
        f'{{"api_key": "{SECRET}", "region": "au\\u00004"}}',
        f'{{"api_key": "{SECRET}", "region": "{SECRET * 3}"}}',
        f'{{"api_key": "{SECRET}", "api_url": ["x"]}}',
        f'{{"api_key": "{SECRET}", "api_url": "https://{SECRET}@api.au4.cliniko.com/v1"}}',
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


def test_api_key_is_in_no_text_form():
    forms = [repr(CREDENTIALS), str(CREDENTIALS), f"{CREDENTIALS}", f"{[CREDENTIALS]}", f"{CREDENTIALS!a}"]
    assert all(API_KEY not in form and "au4" in form for form in forms)


@pytest.mark.parametrize("secret_holder", [CREDENTIALS, Vault([NEW_KEY])])
def test_credentials_and_vaults_are_not_pickled(secret_holder):
    for write in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            write(secret_holder)
    assert repr(Vault([NEW_KEY, OLD_KEY])) == "Vault(2 keys)"


@pytest.mark.parametrize(
    "keys", [[], [""], ["tooshort"], [NEW_KEY, NEW_KEY[:-2]], ["caf\u00e9" * 11], NEW_KEY], ids=range(6)
)
def test_malformed_key_is_a_settings_error_that_hides_it(keys):
    with pytest.raises(SettingsError, match="CREDENTIALS_ENCRYPTION_KEY") as caught:
        Vault(keys)
    texts = all_texts(caught.value)
    assert caught.value.__context__ is None
    assert not any(len(key) > 1 and key in texts for key in keys)


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=examples(20))
def test_text_is_decrypted_also_after_a_rotation(text: str) -> None:
    stored = Vault([OLD_KEY]).encrypt_text(text)
    rotated = Vault([NEW_KEY, OLD_KEY]).rotate(stored)
    assert Vault([OLD_KEY]).decrypt_text(stored) == text
    assert Vault([NEW_KEY]).is_current(rotated)
    assert Vault([NEW_KEY]).decrypt_text(rotated) == text
    assert not text or len(text) < 8 or text not in str(stored)


@pytest.mark.parametrize("stored", [None, {"encrypted_data": "eA=="}, "x"])
def test_value_that_is_no_encrypted_text_is_a_format_error(stored: object) -> None:
    vault = Vault([NEW_KEY])
    with pytest.raises(CredentialsFormatError, match="the stored secret is not a Fernet token"):
        vault.decrypt_text(stored)
    with pytest.raises(CredentialsDecryptionError, match="the stored secret cannot be decrypted"):
        vault.decrypt_text(Vault([FOREIGN_KEY]).encrypt_text("x"))
