-- Returns the key by which names are compared, or null for a blank name. The key is the name in NFKC, case-folded and
-- with collapsed white space.
create or replace function cliniko.name_key(name text) returns text
language sql immutable parallel safe
return nullif(
    btrim(
        regexp_replace(
            cliniko.casefold(
                -- Most names are ASCII and need no normalization. The collation is "C", because regular expressions
                -- fail in a nondeterministic collation.
                case when octet_length(name) = char_length(name) then name else normalize(name, NFKC) end collate "C"
            ),
            U&'[\0009-\000D\001C-\0020\0085\00A0\1680\2000-\200A\2028\2029\202F\205F\3000]+', ' ', 'g'
        ),
        ' '
    ),
    ''
);
