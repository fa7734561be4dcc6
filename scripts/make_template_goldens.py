#!/usr/bin/env python3
"""Writes tests/formats/golden/templates.json: small templates for each construct of the language,
with what transformers' renderer makes of them. Needs transformers and jinja2 from PyPI:

    python -m venv venv && venv/bin/pip install transformers jinja2
    venv/bin/python scripts/make_template_goldens.py
"""
import datetime
import json
import pathlib

import transformers.utils.chat_template_utils as reference

NOW = 1764150000  # strftime_now() in the tests


class FixedTime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc)


reference.datetime = FixedTime

CONTEXT = {
    "text": "Grüße, Wörld 你好 🙂",
    "padded": "  \u00a0a b\u3000\n",
    "empty": "",
    "numbers": [3, 1, 2],
    "mixed": [1, "a", None, True, 2.5, [1], {"k": "v"}],
    "people": [
        {"name": "bob", "age": 30, "city": "Rome"},
        {"name": "Alice", "age": 25, "city": "paris"},
        {"name": "carl", "age": 30, "city": "Paris"},
    ],
    "mapping": {"b": 1, "A": [1, 2], "items": "own", "n": None},
    "tree": [{"v": 1, "kids": [{"v": 2, "kids": []}, {"v": 3, "kids": [{"v": 4, "kids": []}]}]}],
    "yes": True,
    "no": False,
    "nothing": None,
    "seven": 7,
    "half": 0.5,
    "messages": [
        {"role": "system", "content": "be good"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "<b>'hello' & \"bye\"</b>"},
    ],
}

# One template a line; \n in them is written out. Expressions are put into {{ }}.
EXPRESSIONS = r"""
1 + 2 * 3 - 4
7 / 2
7 // 2 ~ ' ' ~ -7 // 2 ~ ' ' ~ 7 // -2
7 % 3 ~ ' ' ~ -7 % 3 ~ ' ' ~ 7 % -3 ~ ' ' ~ 7.5 % 2
2 ** 3 ** 2
-2 ** 2
2 ** -1
+seven
1.0
1e16 ~ ' ' ~ 1e15 ~ ' ' ~ 0.0001 ~ ' ' ~ 0.00001 ~ ' ' ~ 1.5e300 ~ ' ' ~ 0.1
100 / 3
3.0 * 2
0x1F + 0b101 + 0o17 + 1_000
true + true
'a' * 3
[1, 2] * 2
3 * 'ab'
'a' 'b' "c"
'tab\there \x41 \u00e9 \\ \'q\' \q \101'
"a" + "b"
[1] + [2, 3]
(1, 2) + (3,)
1 ~ none ~ true ~ 2.0 ~ 'x' ~ missing
1 == 1.0
true == 1
'a' == 'a'
[1, 2] == [1, 2]
[1, 2] == (1, 2)
{'a': 1, 'b': 2} == {'b': 2, 'a': 1}
none == false
missing == other_missing
1 < 2 < 3
1 < 2 > 3
'a' < 'b'
'Z' < 'a'
[1, 2] < [1, 3]
(1, 'a') < (1, 'b')
1 <= 1 and 2 >= 3
not 1
not (1 and 0)
1 and 2
0 or 'x'
0 and 1
none or missing or 'last'
'a' in 'cat'
'x' not in 'cat'
1 in [1, 2]
'b' in mapping
'k' in {'k': 1}
3 in range(5)
missing in [1]
not 'a' in 'abc'
'yes' if yes else 'no'
'yes' if no
'a' if no else 'b' if no else 'c'
numbers[0]
numbers[-1]
numbers[9]
numbers[1:]
numbers[::-1]
numbers[-2:]
numbers[:1]
numbers[5:]
numbers[2:0:-1]
numbers[::2]
text[0]
text[-1]
text[7:12]
text[::-1]
text[100:]
text[:-3]
(1, 2, 3)[1]
(1, 2, 3)[1:]
mapping.b
mapping['b']
mapping['items']
mapping.missing
mapping.missing is defined
mapping['missing'] is defined
mapping.A[1]
mapping.A.1
mapping.get('b')
mapping.get('zz')
mapping.get('zz', 'fallback')
mapping.keys()
mapping.values()
mapping.items()
mapping.items() | list
mapping.keys() | list | join(',')
mapping | length
nothing.attribute is defined
missing is defined
missing.attribute
missing[0]
missing()
missing + 1
missing | length
missing ~ 'x'
missing | default('d')
nothing | default('d')
nothing | default('d', true)
empty | default('d', boolean=true)
empty | d('e')
[]
[1, 'a', none, true, 2.5, "it's", 'say "x"', 'both \' and "', 'line\nend', '\x07é\u200b']
()
(1,)
(1, 2)
{}
{'a': 1, 2: 'b', none: true, 1.5: [1]}
{'a': {'b': [1, (2,)]}}
mixed
messages
range(3)
range(3) | list
range(2, 8, 3) | list
range(5, 0, -2) | list
range(0) | list
text.upper()
text.lower()
text.title()
'hello wORLD'.capitalize()
'straße'.upper()
'Abc'.swapcase()
padded.strip() | tojson
padded.lstrip() | tojson
padded.rstrip() | tojson
'xxabcxx'.strip('x')
'xyabcyx'.lstrip('xy')
'abc\n'.rstrip('\n')
'a b  c'.split()
' a b '.split(' ')
'a,b,c'.split(',')
'a,b,c'.split(',', 1)
'a,b,c'.rsplit(',', 1)
'a  b c'.rsplit(none, 1)
'a  b c'.split(none, 1)
'a--b'.split('--')[-1]
''.split()
''.split(',')
'a\nb\r\nc\n'.splitlines()
'a\nb\n'.splitlines(true)
'k=v=w'.partition('=')
'k=v=w'.rpartition('=')
'kv'.partition('=')
'abc'.startswith('ab')
'abc'.startswith(('x', 'a'))
'abc'.endswith('bc')
'abc'.endswith('ab', 0, 2)
'abcabc'.replace('b', 'X')
'abcabc'.replace('b', 'X', 1)
'abc'.replace('', '-')
', '.join(['a', 'b'])
'-'.join('abc')
'abcabc'.find('c')
'abcabc'.rfind('c')
'abc'.find('z')
'abcabc'.index('b')
'abc'.index('z')
'banana'.count('an')
'été'.find('t')
'abc'.isalpha() ~ '1'.isdigit() ~ 'a1'.isalnum() ~ ' '.isspace() ~ 'a'.islower() ~ 'A'.isupper() ~ ''.isalpha()
'5'.zfill(3) ~ '-5'.zfill(4)
'a'.ljust(3) ~ '|'
'a'.rjust(3, '.')
'ab'.center(5, '*')
'ab'.center(7, '*')
'prefix-x'.removeprefix('prefix-')
'x.txt'.removesuffix('.txt')
'{} and {}'.format('a', 1)
'{1} {0}'.format('a', 'b')
'{name} is {age}'.format(name='Bob', age=3)
'{:>5}|{:<5}|{:^5}'.format('a', 'b', 'c')
'{:05d} {:x} {:,}'.format(42, 255, 1234567)
'{:.2f} {:8.3f} {:e} {:.0%}'.format(3.14159, 2.5, 12345.678, 0.25)
'{!r} {{}}'.format('q')
'{0[k]} {1.name}'.format({'k': 5}, people[0])
'{:+d} {: d} {:b} {:o} {:#x}'.format(3, 4, 5, 8, 255)
'{:*^9}'.format('mid')
'{}'.format(1.0)
'%s has %d' % ('x', 3)
'%05.1f|%-5s|%5s|%x' % (3.14159, 'ab', 'cd', 255)
'%s' % 'one'
'%(a)s-%(b)s' % {'a': 1, 'b': 2}
'%d%%' % 50
'%r' % 'q'
'%s' % [1, 2]
'%s %s' % ('a',)
'%s-%s' | format('a', 'b')
[1, 2, 1].count(1)
[1, 2, 1].index(2)
(1, 2).count(2)
[1].append(2)
{}.update({})
numbers | sort
numbers | sort(reverse=true)
people | sort(attribute='name') | map(attribute='name') | join(' ')
people | sort(attribute='age,name') | map(attribute='name') | join(' ')
['b', 'A', 'c'] | sort
['b', 'A', 'c'] | sort(case_sensitive=true)
people | map(attribute='name') | list
people | map(attribute='zip', default='?') | list
['a', 'b'] | map('upper') | join
[1, 2, 3] | map('string') | join('+')
['a', 'b'] | map('replace', 'a', 'x') | list
people | selectattr('age', 'equalto', 30) | map(attribute='name') | list
people | selectattr('age', '>', 26) | list | length
people | rejectattr('city', 'eq', 'Rome') | map(attribute='name') | join(',')
people | selectattr('missing') | list
people | selectattr('missing', 'defined') | list
[1, 2, 3, 4] | select('odd') | list
[1, 2, 3, 4] | reject('divisibleby', 2) | list
[0, 1, '', 'a', none] | select | list
people | groupby('city') | map('first') | list
people | groupby('age')
people | unique(attribute='age') | map(attribute='name') | list
['a', 'A', 'b'] | unique | list
numbers | sum
people | sum(attribute='age')
numbers | min ~ numbers | max
people | max(attribute='age')
[] | min
[] | first
numbers | first
numbers | last
'abc' | last
mapping | first
numbers | reverse | list
'abc' | reverse
numbers | join
numbers | join(', ')
people | join(', ', attribute='name')
missing | join('x')
'a,b' | join('-')
[1, 2, 3, 4, 5] | batch(2) | list
[1, 2, 3, 4, 5] | batch(2, 'x') | list
[1, 2, 3, 4, 5] | slice(2) | list
[1, 2, 3, 4, 5] | slice(3, 'x') | list
mapping | dictsort
mapping | dictsort(true)
{'x': 2, 'y': 1} | dictsort(by='value')
{'x': 2, 'y': 1} | dictsort(reverse=true)
mapping | items | list
missing | items | list
'abc' | list
mapping | list
'  a ' | trim | tojson
'--a--' | trim('-')
5 | string | length
'Hello' | upper ~ 'Hello' | lower
'hello big-world (now)' | title
'hELLO' | capitalize
'a<b>&"c"' | escape
'a<b>' | e
'a<b>' | safe
('a<b>' | safe) + '<c>'
'<c>' + ('a<b>' | safe)
('x' | safe) ~ '<'
'a\nb\n\nc' | indent
'a\nb' | indent(2, true)
'a\nb' | indent('> ', first=true)
'a\n\nb' | indent(width=3, blank=true)
'a b c' | replace(' ', '_')
'aaa' | replace('a', 'b', 2)
12 | replace(1, 3)
'a b c' | wordcount
'hello world this is long' | truncate(12)
'hello world this is long' | truncate(12, true)
'hello world' | truncate(5, true, '', 0)
'ab' | center(6) ~ '|'
-5 | abs
3.7 | int ~ ' ' ~ '42' | int ~ ' ' ~ 'x' | int ~ ' ' ~ '3.9' | int ~ ' ' ~ 'ff' | int(0, 16)
'x' | int(default=7)
'3.5' | float ~ ' ' ~ 'x' | float ~ ' ' ~ 2 | float
3.14159 | round(2)
2.5 | round
3.2 | round(method='ceil')
3.789 | round(1, 'floor')
7 | round
'a b/c?d' | urlencode
{'a': 'x y', 'b': 1} | urlencode
1000000 | filesizeformat
mixed | tojson
mapping | tojson(indent=2)
{'a': [], 'b': {}, 'c': [1, {'d': 2}]} | tojson(indent=4)
{'é': '☃ "q" \\ \n \t / <'} | tojson
{'é': '☃🙂'} | tojson(ensure_ascii=true)
{'b': 1, 'a': 2} | tojson(sort_keys=true)
{'b': 1, 'a': 2} | tojson(separators=(',', ':'))
[1.0, 1e20, 0.1, -0.0, true, none] | tojson
(1, 'x') | tojson
'text' | tojson
{1: 'a', none: 'b', true: 'c'} | tojson
missing | tojson
people | map(attribute='age') | tojson
seven is odd ~ seven is even
9 is divisibleby 3
9 is divisibleby(2)
'a' is string ~ 1 is string
1 is number ~ 1.5 is number ~ true is number ~ 'a' is number
1 is integer ~ true is integer ~ 1.0 is integer ~ 1.0 is float
true is boolean ~ 1 is boolean
true is true ~ 1 is true ~ false is false
none is none ~ missing is none
mapping is mapping ~ numbers is mapping
numbers is sequence ~ 'a' is sequence ~ mapping is sequence ~ 1 is sequence ~ missing is sequence
numbers is iterable ~ 'a' is iterable ~ 1 is iterable ~ mapping is iterable ~ none is iterable ~ missing is iterable
mapping.items() is sequence ~ (numbers | map('abs')) is iterable
'abc' is lower ~ 'ABC' is upper ~ 'Abc' is lower
1 is in [1, 2]
1 is not in [1, 2]
1 is sameas 1
none is sameas none
1 is eq 1 ~ 1 is ne 2 ~ 1 is lt 2 ~ 2 is ge 2 ~ 1 is gt 2 ~ 1 is le 1
missing is undefined
missing is not defined
'upper' is filter ~ 'nope' is filter ~ 'odd' is test
range is callable ~ 1 is callable
(1 if yes else 2) is odd
numbers | length > 2
(numbers | select('odd')) and 'truthy'
dict(a=1, b='x')
dict([('a', 1)])
dict(mapping, z=1)
dict.fromkeys(['a', 'b'])
strftime_now('%Y-%m-%d')
strftime_now('%d %b %Y %H:%M %A %j')
none + 1
1 + 'a'
'a' + 1
[1] + (2,)
1 / 0
1 // 0
1 % 0
1 < 'a'
'a' in 1
len(numbers)
none | length
5 | list
none()
'x'()
numbers.foo()
'x' | nosuchfilter
'x' is nosuchtest
'x' | upper(1)
'x'.upper(1)
'x'.nosuch()
range(1000000)
range()
raise_exception('the template says no')
raise_exception('with "quotes" and ' ~ 1)
mapping.pop('b')
'abc'[::0]
[1, 2, 3][none:2]
people[0]['name'][0] | upper
people.0.name
text | length
'é' | length
9223372036854775807
1_0
1if 1 else 2
mapping['A'][-1]
[[1, 2], [3]] | map('join', '-') | list
[1, [2, 3]] | string
{'k': 'v'}['k']
{'a': 1}.a
[1, 2, 3,]
(1, 2,)
{'a': 1,}
people | map(attribute='name') | map('upper') | map('length') | sum
'a' ~ 1 + 2
'%.2f' | format(seven / 3)
joiner('|')()
cycler('a', 'b').next()
""".strip("\n").split("\n")

# Whole templates.
TEMPLATES = [
    # white space control
    "a\n{% if yes %}\nb\n{% endif %}\nc\n",
    "a\n  {% if yes %}  \n  b\n  {% endif %}\nc\n",
    "a {%- if yes -%} \n b \n {%- endif -%} c",
    "a\n  {%+ if yes +%}\n  b\n  {%+ endif %}\nc",
    "  {{ 'x' }}  \n  {{- 'y' -}}  \n z",
    "{{ 'x' }}\n{{ 'y' }}\n",
    "a\n{# note #}\nb {# note #} c\n  {#- note -#}\n d\n  {# note +#}\ne",
    "{% raw %}{{ not }} {% if %}{% endraw %}!",
    "a\n  {%- raw -%}\n  {{ x }}\n  {%- endraw -%}\n  b",
    "a\r\n{% if yes %}\r\nb\r\n{% endif %}c\r\n",
    "text\n\n",
    "\n{% set a = 1 %}\n\n{% set b = 2 %}\n{{ a }}{{ b }}\n",
    "{%if yes%}x{%endif%}{{seven}}{{-seven}}",
    "{{ '{{' }} {{ '}}' }} {{ '{%' }} {{ {'a': {'b': 1}} }}",
    "{ { {a} %} }} #}",
    "{% set x = '\n' %}[{{ x }}]",
    "{{ 'a' }}{# {{ b }} #}{{ 'c' }}",
    "x {%- set a = 1 %} y\n \t {%- set b = 2 -%} \t\n z",
    # branches
    "{% if no %}a{% elif seven == 7 %}b{% else %}c{% endif %}",
    "{% if no %}a{% elif no %}b{% else %}c{% endif %}",
    "{% if missing %}a{% endif %}{% if not missing %}b{% endif %}",
    "{% if numbers and text %}a{% endif %}{% if empty or nothing %}b{% endif %}",
    "{% if yes: %}colon{% endif %}",
    # loops
    "{% for x in numbers %}{{ x }},{% endfor %}",
    "{% for x in [] %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in missing %}{{ x }}{% else %}none{% endfor %}",
    "{% for c in 'añ🙂' %}[{{ c }}]{% endfor %}",
    "{% for k in mapping %}{{ k }} {% endfor %}",
    "{% for k, v in mapping.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in mapping | dictsort %}{{ k }}={{ v }};{% endfor %}",
    "{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}",
    "{% for a, b in [(1,)] %}{{ a }}{% endfor %}",
    "{% for x in numbers %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}"
    "{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }} {% endfor %}",
    "{% for x in numbers %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {% endfor %}",
    "{% for x in numbers %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }} {% endfor %}",
    "{% for x in numbers %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for x in [1, 1, 2, 2, 1] %}{{ loop.changed(x) }} {% endfor %}",
    "{% for x in numbers if x > 1 %}{{ x }}/{{ loop.length }}{{ loop.last }} {% endfor %}",
    "{% for x in numbers if x > 5 %}{{ x }}{% else %}none{% endfor %}",
    "{% for m in messages if m.role != 'system' %}{{ loop.index0 }}{{ m.role }} {% endfor %}",
    "{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}"
    "{% endif %}{{ x }}{% endfor %}",
    "{% for x in range(3) %}{% for y in range(3) %}{% if y > x %}{% break %}{% endif %}{{ x }}{{ y }} "
    "{% endfor %}|{% endfor %}",
    "{% for n in tree recursive %}{{ n.v }}@{{ loop.depth }}{% if n.kids %}({{ loop(n.kids) }})"
    "{% endif %}{% endfor %}",
    "{% for x in 5 %}{% endfor %}",
    "{% for x in none %}{% endfor %}",
    "{% for x in numbers %}{% set last = x %}{% endfor %}{{ last }}",
    "{% set n = 0 %}{% for x in numbers %}{{ n }}{% set n = n + x %}{{ n }} {% endfor %}{{ n }}",
    "{% set ns = namespace(n=0) %}{% for x in numbers %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}",
    "{% set ns = namespace(found=false) %}{% for x in numbers if not ns.found %}{{ x }}"
    "{% set ns.found = true %}{% endfor %}",
    "{% set ns = namespace(stop=false) %}{% for x in [1, 2, 3] if not ns.stop %}{{ x }}{{ loop.last }}"
    "{% set ns.stop = true %}{% endfor %}",
    "{% for message in messages[1:] %}{{ message['role'] }}: {{ message.content }}\n{% endfor %}",
    "{% for x in (numbers | select('odd')) %}{{ x }}{% endfor %}",
    "{% set it = numbers | map('string') %}{{ it | list }}{{ it | list }}",
    # set
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set a = 1, 2 %}{{ a }}",
    "{% set block %}x{{ seven }}\n y{% endset %}[{{ block }}]",
    "{% set block | upper | trim %} xy {% endset %}[{{ block }}]",
    "{% if yes %}{% set inside = 1 %}{% endif %}{{ inside }}",
    "{% set ns = namespace(a=1) %}{% set ns.b = ns.a + 1 %}{{ ns.a }}{{ ns.b }}{{ ns.c }}{{ ns.c is defined }}",
    "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns['b'] }}",
    "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "{% set numbers.x = 1 %}",
    "{% set x.y = 1 %}",
    "{% set text = text | upper %}{{ text }}",
    "{% set x %}{% set inner = 1 %}{{ inner }}{% endset %}{{ x }}{{ inner is defined }}",
    # macros
    "{% macro m(a, b='B', c=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }} {{ m(1, 2) }} {{ m(b=3, a=4) }} {{ m() }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, x=2) }}",
    "{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, k=4) }}",
    "{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}body{{ seven }}{% endcall %}",
    "{% macro m() %}{% for x in numbers %}[{{ caller(x) }}]{% endfor %}{% endmacro %}"
    "{% call(x) m() %}<{{ x }}>{% endcall %}",
    "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}",
    "{% macro fact(n) %}{% if n <= 1 %}1{% else %}{{ n * (fact(n - 1) | int) }}{% endif %}{% endmacro %}{{ fact(5) }}",
    "{% macro m() %}{{ top }}{% endmacro %}{% set top = 'later' %}{{ m() }}",
    "{% macro m(x) %}{% set x = x ~ '!' %}{{ x }}{% endmacro %}{{ m('a') }}{{ x is defined }}",
    "{% macro m(a) -%}\n  {{ a }}\n{%- endmacro %}[{{ m('z') }}]{{ m('z') | upper }}{{ m.name }}",
    "{% for x in numbers %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}",
    "{% macro outer() %}{% macro inner(x) %}<{{ x }}>{% endmacro %}{{ inner(1) }}{{ inner(2) }}{% endmacro %}{{ outer() }}",
    "{% macro m(a, b=1, c) %}{% endmacro %}",
    # other blocks
    "{% with a = 1, b = seven %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}",
    "{% with %}{% set z = 1 %}{{ z }}{% endwith %}{{ z is defined }}",
    "{% filter upper %}abc{{ text }}{% endfilter %}",
    "{% filter replace('a', 'b') | upper %}aha{% endfilter %}",
    "{% generation %}x{{ seven }}{% endgeneration %}y",
    "{% for m in messages %}{% if m.role == 'assistant' %}{%- generation -%} {{ m.content }} {%- endgeneration -%}{% endif %}{% endfor %}",
    "{% block b %}in{{ seven }}{% endblock %}out",
    "{% print 1, 'a' %}",
    "{% if no %}{{ 'x' | nosuch }}{% endif %}fine",
    "{% if yes %}{{ 'x' | nosuch }}{% endif %}",
    "{{ ('x' | nosuch) if no else 'fine' }}",
    "{% for x in numbers %}{% if no %}{% for y in x | nosuch %}{% endfor %}{% endif %}{% endfor %}fine",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.next() }}",
    "{% set j = joiner() %}{% for x in numbers %}{{ j() }}{{ x }}{% endfor %}",
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' + m['content'] | trim + '\\n' }}{% endfor %}",
    "{{ messages | tojson(indent=2) }}",
    "{% if messages[0].role == 'user' %}{% else %}{{ raise_exception('must begin with user') }}{% endif %}",
    "{{- bos_token }}{% for message in messages %}\n{{ message.content -}}\n{% endfor %}",
    # what does not parse
    "{% if yes %}",
    "{% endif %}",
    "{% nosuch %}",
    "{{ 1 + }}",
    "{{ (1 }}",
    "{{ 1",
    "{# never",
    "{% raw %}x",
    "{{ 'x }}",
    "{% for x in %}{% endfor %}",
    "{% for in x %}{% endfor %}",
    "{% set true = 1 %}",
    "{% set 1 = 1 %}",
    "{{ a b }}",
    "{{ x is defined is string }}",
    "{{ f(a=1, 2) }}",
    "{{ $ }}",
    "{% break %}",
    "{% include 'x' %}",
    "{% if no %}{% include 'x' %}{% endif %}fine",
    "{% do numbers.append(1) %}",
    "{{ ] }}",
    "{}{{}}",
]


def render(template):
    try:
        compiled = reference._compile_jinja_template(template)
        context = json.loads(json.dumps(CONTEXT))
        return {"text": compiled.render(**context)}
    except Exception as error:  # whatever Jinja2 throws
        return {"error": type(error).__name__, "message": str(error)}


def main():
    rows = []
    for template in ["{{ " + e + " }}" for e in EXPRESSIONS] + TEMPLATES:
        rows.append({"template": template, **render(template)})
    path = pathlib.Path(__file__).parent.parent / "tests/formats/golden/templates.json"
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    context = json.dumps(CONTEXT, ensure_ascii=False)
    path.write_text(f'{{"now": {NOW},\n"context": {context},\n"rows": [\n{lines}\n]}}\n')
    print(f"{len(rows)} templates in {path}")


if __name__ == "__main__":
    main()
