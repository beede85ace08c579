"""The grammar of YAML texts, such that none can become another type or break its block.

A rule for a text includes the end of its last line; its name ends in the indentation of the lines
after the first. Guidance treats a rule without recursion as one terminal, takes the longest
matching terminal without backtracking, and holds about 2,000 open rules. So every line is a
recursion, every character of it a repetition, and wherever a text may end or continue, a terminal
is a single character.

Source: YAML 1.1 with the resolvers of PyYAML 6.0; GBNF as in llama.cpp's grammars/README.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise

from vllm_eval.tasks.declaration import Ids

MAX_DIGITS = 6
"""Of an identifier."""

_ASCII = "".join(map(chr, range(0x21, 0x7F)))
_LETTERS = "".join(filter(str.isalpha, _ASCII))
_WORDY = _LETTERS + "0123456789_"
_UNICODE = (
    "\u00a1-\u167f\u1681-\u1fff\u2010-\u2027\u2030-\u205e\u2070-\u2fff\u3001-\ud7ff"
    "\uf900-\ufdff\ufe00-\ufefe\uff01-\ufffd\U00010000-\U0010fffd"
)
"""No white space, nothing that YAML cannot print, hardly any invisible characters.

Spelled out: guidance misreads GBNF's escapes of such characters.
"""
_INDICATORS = "-?:,[]{}#&*!|>'\"%@`"
"""Characters that no plain text begins with."""
_ODD = "0123456789~=<.+"
"""A one-word text that begins with these may be a number, a date, null or a merge key."""
_RESERVED = "yYnNtTfFoO"
"""First letters of `yes`, `No`, `true`, `off`, `null`, ..."""
_RESERVED_LETTERS = "aeflnorstuyAEFLNORSTUY"
"""All letters of those words."""
_TICK = '"`"?'
"""Two backticks never follow each other, because three would end the block."""
_ESCAPES = {"'": '"\'" "\'"', '"': r'"\\" ["\\]'}
"""By quote: its spelling inside a text in such quotes."""
_ESCAPED = {"'": "", '"': "\\"}
"""By quote: other characters that need an escape."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules so far, by name."""

    bodies: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, *forms: str) -> str:
        """Add a rule and its forms, once; returns its name."""
        self.bodies.setdefault(name, " | ".join(forms))
        return name


def literal(text: str) -> str:
    """`text` as a terminal."""
    return json.dumps(text)


def spelled(text: str) -> str:
    """`text` as a terminal for each character.

    Guidance takes the longest matching terminal, and cannot backtrack if the rest does not match.
    """
    return " ".join(map(json.dumps, text))


def one_of(without: str, *, among: str = _ASCII, others: str = _UNICODE, also: str = "") -> str:
    """A character class, as ranges: `among` except `without`, plus `others`."""
    codes = sorted({ord(c) for c in among if c not in without} | {ord(c) for c in also})
    breaks = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(codes)) if b != a + 1), len(codes)]
    ranges = (f"\\x{codes[a]:02x}-\\x{codes[b - 1]:02x}" for a, b in pairwise(breaks))
    return f"[{''.join(ranges)}{others}]"


def only(characters: str) -> str:
    """A class of exactly these characters."""
    return one_of("", among=characters, others="")


def add_text(rules: Rules, indent: int, *, block: bool = False) -> str:
    """A rule for a text that is not blank: plain, quoted or, with `block`, a block scalar."""
    forms = [_plain(rules, indent), _quoted(rules, "'", indent), _quoted(rules, '"', indent)]
    if block:
        forms.append(_block(rules, indent))
    return rules.add(f"{'value' if block else 'text'}-{indent}", *forms)


def add_naming(rules: Rules, ids: Ids, indent: int) -> str:
    """A rule for a text that names an identifier; a quoted one begins with it."""
    _plain(rules, indent)
    more = f"({one_of(_WORDY + ':`', others='')} | {_MARKED} | {_gap(indent)}) plain-tail-{indent}"
    after = rules.add(f"after-{indent}", more, f'{_TICK} "\\n"')
    named = f'"("? {_identifier(ids)} {after}'
    unit = f"{one_of(':`')} | {_MARKED} | {_gap(indent)}"  # after the text's first character
    begun = f"{one_of(_INDICATORS + _ODD)} ({unit})* {_TICK} {_space(indent)} {named}"
    forms = [named, begun]
    for quote in _ESCAPES:
        _quoted(rules, quote, indent)
        inside = one_of(_WORDY + "\\`" + quote, others="", also=" ")
        rest = f"({inside} quoted{ord(quote)}-{indent} | {literal(quote)} " + r'"\n")'
        forms.append(f'{literal(quote)} "("? {_identifier(ids)} {rest}')
    return rules.add(f"naming-{_called(ids)}-{indent}", *forms)


def add_entry(rules: Rules, indent: int, ids: Ids | None = None) -> str:
    """A rule for `words: text`, a mapping of one key; with `ids`, one begins the key."""
    letter, space = one_of(":`"), f'" " {one_of("#:`")}'
    rest = f'({letter} | {space})* ":" " " {add_text(rules, indent + 2)}'
    key = rules.add(f"key-{indent}", rest)
    if ids:
        after = f"({one_of(_WORDY + ':`', others='')} | {space}) {key}"
        end = rules.add(f"key-end-{indent}", after, f'":" " " text-{indent + 2}')
        return rules.add(f"entry-{_called(ids)}-{indent}", f'"("? {_identifier(ids)} {end}')
    safe = one_of(_INDICATORS + _ODD + _RESERVED)
    longer = f"({one_of(_RESERVED_LETTERS + ':`')} | {space})"
    risky = f"{only(_RESERVED)} {only(_RESERVED_LETTERS)}* {longer} {key}"
    return rules.add(f"entry-{indent}", f"{safe} {key}", risky)


def add_counted(rules: Rules, words: int, indent: int) -> str:
    """A rule for a text of one to `words` words, as `str.split` counts them.

    A plain text has two words or more, which no other type has.
    """
    rest = _letters(rules, "word", f"{_MARKED} | {one_of(':`')}")
    first, start = one_of(_INDICATORS + _ODD), f"{_TICK} {one_of('#:`')} {rest}"
    more = rules.add(f"more-{indent}", f"{_space(indent)} {start}")
    forms = [f'{first} {rest} {_repeated(more, 1, words - 1)} "\\n"'] if words > 1 else []
    for quote, escape in _ESCAPES.items():
        unit = f"({one_of(quote + _ESCAPED[quote] + '`')} | {escape})"
        word = f"{_TICK} {unit} {_letters(rules, f'word{ord(quote)}', f'{_TICK} {unit}')}"
        more = rules.add(f"more{ord(quote)}-{indent}", f"{_space(indent)} {word}")
        mark = literal(quote)
        forms.append(f'{mark} {word} {_repeated(more, 0, words - 1)} {mark} "\\n"')
    unit = f"{_TICK} {one_of('`')}"
    word = f"{unit} {_letters(rules, 'block-word', unit)}"
    more = rules.add(f"block-more-{indent}", f"{_space(indent)} {word}")
    forms.append(f'[|>] "-"? {_break(indent)} {word} {_repeated(more, 0, words - 1)} "\\n"')
    return rules.add(f"counted-{words}-{indent}", *forms)


def add_date(rules: Rules) -> str:
    """A rule for a date that exists, with or without a time of day."""
    short = '"02-" ("0" [1-9] | "1" [0-9] | "2" [0-8])'
    day = '("0" [1-9] | [12] [0-9] | "30")'
    months = f'("0" [469] | "11") "-" {day} | ("0" [13578] | "1" [02]) "-" ({day} | "31")'
    hour = '("0" [0-9] | "1" [0-9] | "2" [0-3])'
    zone = '("Z" | [-+] ("0" [0-9] | "1" [0-4]) ":" [0-5] [0-9])'
    time = f'[T ] {hour} ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{{3,6}})? {zone}?'
    bare = rules.add("moment", f'[12] [0-9]{{3}} "-" ({short} | {months}) ({time})?')
    return rules.add("date", bare, f'"\'" {bare} "\'"', f'"\\"" {bare} "\\""')


def _plain(rules: Rules, indent: int) -> str:
    """A plain text: no `: `, no ` #`, no type but text."""
    start = f"{_TICK} {one_of('#:`')}"
    inline = f'({one_of(":`")} | {_MARKED} | {_TICK} " " {start})* {_TICK}'
    tail = f"plain-tail-{indent}"
    rules.add(tail, f'{inline} ("\\n" | {_break(indent)} {start} {tail})')
    safe = one_of(_INDICATORS + _ODD + _RESERVED)
    longer = f"({_MARKED} | {one_of(_RESERVED_LETTERS + ':`')} | {_gap(indent)})"
    risky = f"{only(_RESERVED)} {only(_RESERVED_LETTERS)}* {longer} {tail}"
    odd = f"{only(_ODD)} {one_of(':`')}* {_space(indent)} {only(_LETTERS)} {tail}"
    return rules.add(f"plain-{indent}", f"{safe} {tail}", risky, odd)


def _gap(indent: int) -> str:
    """The end of a word and the beginning of the next one."""
    return f"{_TICK} {_space(indent)} {_TICK} {one_of('#:`')}"


def _space(indent: int) -> str:
    return f'(" " | {_break(indent)})'


def _quoted(rules: Rules, quote: str, indent: int) -> str:
    """A quoted text that is not blank."""
    without, escape = quote + _ESCAPED[quote] + "`", _ESCAPES[quote]
    one, any_of = f"({one_of(without)} | {escape})", f"({one_of(without, also=' ')} | {escape})"
    tail, end = f"quoted{ord(quote)}-{indent}", f'{literal(quote)} "\\n"'
    onward = f"{_break(indent)} {_TICK} {one} {tail}"
    rules.add(tail, f"({_TICK} {any_of})* {_TICK} ({end} | {onward})")
    return f"{literal(quote)} {_TICK} {one} {tail}"


def _block(rules: Rules, indent: int) -> str:
    """A block scalar of which no line begins with a space."""
    start, tail = f"{_break(indent)} {_TICK} {one_of('`')}", f"block-{indent}"
    rules.add(tail, f'({_TICK} {one_of("`", also=" ")})* {_TICK} ("\\n" | {start} {tail})')
    return f'[|>] "-"? {start} {tail}'


def _letters(rules: Rules, name: str, unit: str) -> str:
    """The rest of a word; recursive, or guidance would treat the whole word as a terminal."""
    return rules.add(name, _TICK, f"({unit}) {name}")


def _repeated(rule: str, least: int, most: int) -> str:
    return f"{rule}{{{least},{most}}}" if most else ""


def _identifier(ids: Ids) -> str:
    """Spelled out where it is used, because guidance would treat a separate rule as a terminal."""
    prefixes = " | ".join(map(spelled, ids.prefixes))
    return f"({prefixes}) [0-9]{{{ids.min_digits},{max(ids.min_digits, MAX_DIGITS)}}}"


def _called(ids: Ids) -> str:
    return "-".join((*ids.prefixes, str(ids.min_digits)))


def _break(indent: int) -> str:
    return spelled("\n" + " " * indent)


_MARKED = f'("`" | ":"+ {_TICK}) {one_of(":`")}'
"""A backtick or colons, which must not end a word, and the character after them."""
