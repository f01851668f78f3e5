-- Returns the trimmed and case-folded e-mail address, by which addresses are compared, or null for a blank address.
create or replace function cliniko.email_key(email text) returns text
language sql immutable parallel safe
return nullif(
    cliniko.casefold(
        btrim(
            email collate "C",
            U&'\0009\000A\000B\000C\000D\001C\001D\001E\001F\0020\0085\00A0\1680\2000\2001\2002\2003\2004'
            '\2005\2006\2007\2008\2009\200A\2028\2029\202F\205F\3000'
        )
    ),
    ''
);
