"""The vault: every stored shape opens, nothing else does, and nothing it says gives a secret away."""

import base64
import copy
import json
import pickle
import traceback
from collections.abc import Callable

import pytest
from cryptography.fernet import Fernet
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from cliniko_pipeline.credentials.vault import ClinikoCredentials, Vault
from cliniko_pipeline.errors import CredentialsDecryptionError, CredentialsFormatError, SettingsError

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


def everything_told(error: BaseException) -> str:
    """All that a log could take from an error: its traceback and whatever hangs on it, suppressed or not."""
    told = "".join(traceback.format_exception(error))
    for other in (error.__cause__, error.__context__):
        if other is not None:
            told += repr(other) + repr(vars(other)) + everything_told(other)
    return told


@pytest.mark.parametrize("shape", SHAPES)
def test_each_stored_shape_decrypts(shape):
    assert Vault([NEW_KEY]).decrypt(SHAPES[shape](token_of(PLAINTEXT))) == CREDENTIALS


@given(credentials, shapes, st.sampled_from([NEW_KEY, OLD_KEY]))
@settings(deadline=None)
def test_any_credentials_survive_every_shape_and_a_rotation(given_credentials, shape, key):
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
@settings(deadline=None)
def test_alphabet_padding_and_white_space_of_the_base64_do_not_matter(shape, around, standard, padded, filler):
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


def test_base64_broken_into_lines_decrypts():
    stored = base64.encodebytes(token_of(PLAINTEXT)).decode()
    assert stored.count("\n") > 1
    assert Vault([NEW_KEY]).decrypt(stored) == CREDENTIALS


def test_encrypting_writes_the_first_shape():
    stored = Vault([NEW_KEY]).encrypt(CREDENTIALS)
    assert list(stored) == ["encrypted_data"]
    plaintext = Fernet(NEW_KEY).decrypt(base64.b64decode(stored["encrypted_data"], validate=True))
    assert json.loads(plaintext) == json.loads(PLAINTEXT)


def test_absent_options_are_not_written():
    stored = Vault([NEW_KEY]).encrypt(ClinikoCredentials(API_KEY))
    assert json.loads(Fernet(NEW_KEY).decrypt(base64.b64decode(stored["encrypted_data"]))) == {"api_key": API_KEY}


def test_the_first_key_encrypts():
    stored = Vault([NEW_KEY, OLD_KEY]).encrypt(CREDENTIALS)
    assert Vault([NEW_KEY]).decrypt(stored) == CREDENTIALS
    with pytest.raises(CredentialsDecryptionError):
        Vault([OLD_KEY]).decrypt(stored)


def test_keys_may_come_as_secrets():
    assert Vault([SecretStr(NEW_KEY)]).decrypt(Vault([NEW_KEY]).encrypt(CREDENTIALS)) == CREDENTIALS


def test_rotation_keeps_what_another_program_put_into_the_plaintext():
    plaintext = json.dumps({"api_key": API_KEY, "business_id": "77", "region": ""})
    rotated = Vault([NEW_KEY, OLD_KEY]).rotate(SHAPES["a token"](token_of(plaintext, OLD_KEY)))
    assert Fernet(NEW_KEY).decrypt(base64.b64decode(rotated["encrypted_data"])).decode() == plaintext


@pytest.mark.parametrize("shape", SHAPES)
def test_only_the_first_shape_under_the_first_key_is_current(shape):
    vault = Vault([NEW_KEY, OLD_KEY])
    assert vault.is_current(SHAPES[shape](token_of(PLAINTEXT))) is (shape == "an object")
    assert not vault.is_current(SHAPES[shape](token_of(PLAINTEXT, OLD_KEY)))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_wrong_key_says_which_variable_must_hold_the_right_one(shape):
    stored = SHAPES[shape](token_of(PLAINTEXT, FOREIGN_KEY))
    for use in (Vault([NEW_KEY, OLD_KEY]).decrypt, Vault([NEW_KEY, OLD_KEY]).rotate):
        with pytest.raises(CredentialsDecryptionError, match="CREDENTIALS_ENCRYPTION_KEY must hold the key") as caught:
            use(stored)
        assert caught.value.__context__ is None
    assert not Vault([NEW_KEY]).is_current(stored)


@given(shapes, st.data())
@settings(deadline=None)
def test_a_damaged_token_never_decrypts(shape, data):
    raw = bytearray(base64.urlsafe_b64decode(token_of(PLAINTEXT)))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises((CredentialsDecryptionError, CredentialsFormatError)):
        Vault([NEW_KEY]).decrypt(SHAPES[shape](base64.urlsafe_b64encode(bytes(raw))))


@given(shapes, st.data())
@settings(deadline=None)
def test_a_truncated_token_never_decrypts(shape, data):
    token = token_of(PLAINTEXT)
    with pytest.raises((CredentialsDecryptionError, CredentialsFormatError)):
        Vault([NEW_KEY]).decrypt(SHAPES[shape](token[: data.draw(st.integers(0, len(token) - 8))]))


@pytest.mark.parametrize(
    "stored",
    [
        None,
        True,
        42,
        4.2,
        [],
        ["gAAAAA"],
        b"gAAAAA",
        {},
        {"encrypted_data": None},
        {"encrypted_data": 5},
        {"encrypted_data": ""},
        {"encrypted_data": {"encrypted_data": "x"}},
        {"encrypted": "gAAAAA"},
        "",
        "   ",
        "{",
        "{}",
        '{"encrypted_data": ',
        '{"encrypted_data": []}',
        "[1, 2]",
        '{"a":' * 100_000,
        "not base64 at all!",
        "caf\u00e9",
        "\ud800",
        "null",
        API_KEY,
        PLAINTEXT,
        base64.b64encode(PLAINTEXT.encode()).decode(),
        "A" * 1_000_000,
        base64.b64encode(base64.b64encode(base64.b64encode(b"\x80" + b"0" * 100))).decode(),
    ],
    ids=lambda stored: repr(stored)[:30],
)
def test_what_is_no_stored_shape_is_a_format_error(stored):
    vault = Vault([NEW_KEY])
    for use in (vault.decrypt, vault.rotate):
        with pytest.raises(CredentialsFormatError, match="neither a Fernet token nor") as caught:
            use(stored)
        assert caught.value.__context__ is None
        assert API_KEY not in everything_told(caught.value)
    assert not vault.is_current(stored)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["encrypted_data", "x"]), inner),
    max_leaves=8,
)


@given(json_values)
@settings(deadline=None)
def test_no_junk_raises_anything_but_a_credentials_error(stored):
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
        f'"{SECRET}"',
        f'["{SECRET}"]',
        "null",
        "[" * 100_000 + SECRET,
        f'{{"api_key": "{SECRET}"',
        "{}",
        f'{{"key": "{SECRET}"}}',
        f'{{"api_key": null, "x": "{SECRET}"}}',
        '{"api_key": ""}',
        '{"api_key": "  "}',
        '{"api_key": 12345}',
        f'{{"api_key": ["{SECRET}"]}}',
        f'{{"api_key": "{SECRET} au4"}}',
        f'{{"api_key": "{SECRET}\\n-au4"}}',
        f'{{"api_key": "{SECRET}\\u0000"}}',
        f'{{"api_key": "{SECRET}\\u00e9"}}',
        f'{{"api_key": "{SECRET}\\ud800"}}',
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
def test_a_plaintext_that_is_no_credential_is_a_format_error_that_does_not_show_it(plaintext):
    with pytest.raises(CredentialsFormatError) as caught:
        Vault([NEW_KEY]).decrypt(SHAPES["an object"](token_of(plaintext)))
    told = everything_told(caught.value)
    assert SECRET not in told
    assert NEW_KEY not in told
    assert "\n" not in str(caught.value)
    assert f"Organization 'x': {caught.value}".startswith("Organization 'x': the ")


@given(st.text(min_size=1), shapes)
@settings(deadline=None)
@example(OLD_KEY, "a token")
def test_no_error_repeats_a_token(plaintext, shape):
    stored = SHAPES[shape](token_of(plaintext, FOREIGN_KEY))
    with pytest.raises(CredentialsDecryptionError) as caught:
        Vault([NEW_KEY]).decrypt(stored)
    token = stored["encrypted_data"] if isinstance(stored, dict) else stored
    assert token not in everything_told(caught.value)


def test_surrounding_white_space_is_dropped_and_blank_options_are_none():
    assert ClinikoCredentials(f" {API_KEY}\r\n", "  ", " ") == ClinikoCredentials(API_KEY, None, None)
    assert ClinikoCredentials(API_KEY, " au4 ", "").region == "au4"


def test_the_api_key_is_in_no_text_form():
    forms = [repr(CREDENTIALS), str(CREDENTIALS), f"{CREDENTIALS}", f"{[CREDENTIALS]}", f"{CREDENTIALS!a}"]
    assert all(API_KEY not in form and "au4" in form for form in forms)


@pytest.mark.parametrize("secret_holder", [CREDENTIALS, Vault([NEW_KEY])])
def test_credentials_and_vaults_are_not_pickled(secret_holder):
    for write in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            write(secret_holder)


def test_a_vault_shows_no_key():
    assert repr(Vault([NEW_KEY, OLD_KEY])) == "Vault(2 keys)"


@pytest.mark.parametrize(
    "keys", [[], [""], ["tooshort"], [NEW_KEY, NEW_KEY[:-2]], ["caf\u00e9" * 11], NEW_KEY], ids=range(6)
)
def test_a_vault_without_proper_keys_is_a_settings_error_that_shows_none(keys):
    with pytest.raises(SettingsError, match="CREDENTIALS_ENCRYPTION_KEY") as caught:
        Vault(keys)
    told = everything_told(caught.value)
    assert caught.value.__context__ is None
    assert not any(len(key) > 1 and key in told for key in keys)


# --- Other secrets ---------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_text_comes_back_as_it_was_and_after_rotation_too(text: str) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    stored = Vault([old]).encrypt_text(text)
    rotated = Vault([new, old]).rotate(stored)
    assert Vault([old]).decrypt_text(stored) == text
    assert Vault([new]).is_current(rotated)
    assert Vault([new]).decrypt_text(rotated) == text
    assert not text or len(text) < 8 or text not in str(stored)


@pytest.mark.parametrize("stored", [None, {}, {"encrypted_data": "eA=="}, "x", 7])
def test_what_is_no_encrypted_text_is_told_as_such(stored: object) -> None:
    vault = Vault([Fernet.generate_key().decode()])
    with pytest.raises(CredentialsFormatError, match="the stored secret is not a Fernet token"):
        vault.decrypt_text(stored)
    with pytest.raises(CredentialsDecryptionError, match="the stored secret cannot be decrypted"):
        vault.decrypt_text(Vault([Fernet.generate_key().decode()]).encrypt_text("x"))
