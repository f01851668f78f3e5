"""Writes `sql/functions/casefold.sql`: PostgreSQL before 18 has no case folding that is the same in every locale.

`python -m cliniko_pipeline.postgres.schema.casefold > cliniko_pipeline/postgres/sql/functions/casefold.sql`
"""

import sys
import unicodedata
from textwrap import indent

_LINE = 96

_FUNCTION = """\
-- Unicode's full case folding, the same in every locale and version of PostgreSQL. Generated from Python's str.casefold
-- (Unicode {version}) by `python -m cliniko_pipeline.postgres.schema.casefold`; not to be edited by hand.
create or replace function cliniko.casefold(value text) returns text
language plpgsql immutable strict parallel safe
as $function$
declare
    -- Whatever the collation of the value: in one that ignores case nothing can be looked for.
    folded text collate "C" := lower(value collate "C");
begin
    if octet_length(folded) = char_length(folded) then
        return folded;  -- ASCII
    end if;
    -- Alphabet by alphabet: translate() looks every letter up in the whole of its list.
{translations}
    -- Letters that fold to more than one.
    if folded ~
{expanding_letters}
    then
{expansions}
    end if;
    return folded;
end
$function$;
"""

_TRANSLATION = """\
    if folded ~
{any_letter}
    then
        folded := translate(
            folded,
{letters},
{folded_letters}
        );
    end if;"""

# Where the alphabets end: Latin, Greek, Cyrillic with Armenian, all others.
_ENDS = (0x250, 0x400, 0x590, sys.maxunicode + 1)


def function() -> str:
    """The statement that creates `cliniko.casefold(text)`."""
    folded = {
        character: character.casefold()
        for character in map(chr, range(0x80, sys.maxunicode + 1))
        if character.casefold() != character
    }
    to_one = {character: fold for character, fold in folded.items() if len(fold) == 1}
    to_more = {character: fold for character, fold in folded.items() if len(fold) > 1}
    return _FUNCTION.format(
        version=unicodedata.unidata_version,
        translations="\n".join(_translation(part) for part in _by_alphabet(to_one)),
        expanding_letters=_literal(f"[{''.join(to_more)}]", 8),
        expansions="\n".join(
            f"        folded := replace(folded, U&'{_escape(character)}', U&'{_escape(fold)}');"
            for character, fold in to_more.items()
        ),
    )


def _by_alphabet(to_one: dict[str, str]) -> list[dict[str, str]]:
    starts = (0, *_ENDS[:-1])
    return [
        {letter: fold for letter, fold in to_one.items() if start <= ord(letter) < end}
        for start, end in zip(starts, _ENDS, strict=True)
    ]


def _translation(to_one: dict[str, str]) -> str:
    return _TRANSLATION.format(
        any_letter=_literal(f"[{''.join(to_one)}]", 8),
        letters=_literal("".join(to_one), 12),
        folded_letters=_literal("".join(to_one.values()), 12),
    )


def _literal(text: str, depth: int) -> str:
    lines = [""]
    for escaped in map(_escape, text):
        if len(lines[-1]) + len(escaped) > _LINE:
            lines.append("")
        lines[-1] += escaped
    return indent("U&" + "\n".join(f"'{line}'" for line in lines), " " * depth)


def _escape(text: str) -> str:
    return "".join(f"\\{ord(c):04X}" if ord(c) <= 0xFFFF else f"\\+{ord(c):06X}" for c in text)


if __name__ == "__main__":
    sys.stdout.write(function())
