"""Invented people, with example addresses and phone numbers reserved for fiction."""

import random
import unicodedata
from dataclasses import dataclass

_GIVEN_NAMES = (
    "Ada Aisha Alice Amir Ana Arjun Ava Ben Björn Carlos Chloé Dana Daniel Dylan Elif Ella Emil Emma Farah Felix "
    "Finn Freya Grace Hana Hugo Ines Isla Ivan Jack Jade James Jörg Jude Kai Kaur Layla Leo Lien Lily Lucas "
    "Maja Malik María Mason Mei Mia Mila Nadia Nina Noah Nora Oliver Olga Omar Oscar Priya Quinn Rosa Ruby Ryan "
    "Sam Sana Sofia Søren Tara Theo Tom Uma Vera Viktor Wanda Will Xin Yara Yusuf Zara Zoë Zoran"
)
_FAMILY_NAMES = (
    "Adams Ahmed Andersen Baker Barnes Begum Bianchi Brown Campbell Carter Chen Clarke Cooper Costa Cruz Davies "
    "Dubois Evans Fischer Foster Garcia Gonzalez Grant Gray Green Gupta Hall Harris Hassan Hughes Ibrahim Ito "
    "Jackson Jansen Johansson Jones Kelly Khan Kim King Kovács Kumar Lee Lewis Lopez Martin Mehta Meyer Miller "
    "Moore Morris Müller Murphy Nguyen Novak O'Brien Okafor Olsen Park Patel Pereira Petrov Phillips Rossi "
    "Schäfer Scott Shaw Silva Singh Smith Sørensen Suzuki Tan Taylor Thomas Tran Turner Walker Wang Watson White "
    "Wilson Wood Wright Young Zhang"
)
_DOMAINS = ("example.org", "example.com", "mail.example.org", "post.example.com")

# For fiction, Australia reserves single mobile numbers and a range of landline numbers. Britain reserves a range.
_AUSTRALIAN_MOBILES = (
    "0491570006 0491570156 0491570157 0491570158 0491570159 0491570110 0491571266 0491571491 0491571804 "
    "0491572549 0491572665 0491572983 0491573770 0491573087 0491574118 0491574632 0491575254 0491575789"
)
_DIALLING_CODES = {"au": "61", "uk": "44"}


@dataclass(frozen=True, slots=True)
class Person:
    """An invented person, who may have given no e-mail address."""

    first_name: str
    last_name: str
    email: str | None
    phone: str
    birth_year: int


def invent_person(dice: random.Random, number: int, country: str, *, with_email: bool = True) -> Person:
    """Invent a person. `number` makes the e-mail address unique, and `country` is "au" or "uk"."""
    first_name, last_name = dice.choice(_GIVEN_NAMES.split()), dice.choice(_FAMILY_NAMES.split())
    return Person(
        first_name=first_name,
        last_name=last_name,
        email=email_of(first_name, last_name, number, dice.choice(_DOMAINS)) if with_email else None,
        phone=_phone(dice, country),
        birth_year=dice.randint(1938, 2012),
    )


def email_of(first_name: str, last_name: str, number: int, domain: str) -> str:
    """Return an address of ASCII letters, digits and a dot under an example domain."""
    return f"{_ascii(first_name)}.{_ascii(last_name)}{number}@{domain}"


def international(phone: str, country: str) -> str:
    """Return a national number ("0491570006") with the dialling code of the country in front."""
    return _DIALLING_CODES[country] + phone.removeprefix("0")


def _phone(dice: random.Random, country: str) -> str:
    if country == "uk":
        return f"07700900{dice.randrange(1000):03d}"
    if dice.random() < 0.5:
        return dice.choice(_AUSTRALIAN_MOBILES.split())
    return f"025550{dice.randrange(10_000):04d}"


def _ascii(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name.casefold())
    return "".join(letter for letter in plain if letter.isascii() and letter.isalpha()) or "someone"
