"""Random jobs: settings for any corpus, and YAML texts from right to absurd."""

from __future__ import annotations

import json
import math
from typing import Any

import yaml
from hypothesis import strategies as st

KEEP_ALL, KEEP_SOME, KEEP_ODD = "output.keep=*", "output.keep=@SOME@", "output.keep=[day, id]"
"""`@SOME@` stands for every second column that the example's files have."""
_MOSTLY_ALLOWED = ("limits.bad_rows=100000", "limits.bad_files=1000")


def _setting(key: str, *values: object) -> st.SearchStrategy[str | None]:
    """`key=value` for one of the values; None, twice as likely, leaves the default."""
    texts = [f"{key}={value}" for value in values]
    return st.sampled_from([*[None] * 2, *texts] if len(texts) > 1 else [None, *texts])


@st.composite
def corpus_settings(draw: st.DrawFn) -> list[str]:
    """Overrides for a job over a random corpus."""
    choices = (
        st.sampled_from([f"units.rows={rows}" for rows in (1, 2, 3, 5, 7, 100)]),
        _setting("units.bytes", 1, 40, 200, 5000),
        st.sampled_from([*[None] * 8, *[KEEP_ALL, KEEP_SOME] * 4, "output.keep=[]", KEEP_ODD]),
        st.sampled_from([f"output.format={form}" for form in ("wide", "sparse", "dense", "auto")]),
        _setting("output.k", 1, 2, 5),
        _setting("output.floor", 0, 0.2, 0.9),
        _setting("input.max_text_bytes", 1, 10, 100),
        _setting("long", "{policy: skip}", "{max_tokens: 3}", "{policy: skip, max_tokens: 8}"),
        _setting("batching.max_batch_tokens", 12, 16, 300),
    )
    limits = list(_MOSTLY_ALLOWED)
    if draw(st.integers(0, 9)) == 9:
        limits = [
            draw(
                st.sampled_from(("limits.bad_rows=0", "limits.bad_files=0", "limits.bad_rows=0.5"))
            )
        ]
    return [value for choice in choices if (value := draw(choice)) is not None] + limits


MODEL, INPUT, OUTPUT = "@MODEL@", "@INPUT@", "@OUTPUT@"
"""Stand for the paths of an example."""
_NUMBERS: tuple[Any, ...] = (0, 1, 3, -1, 2**31, 2**63, 10**30, 1.5, True, "7", None, math.nan)
_SIZES: tuple[Any, ...] = (1, 40, "64MiB", "1.5 GB", "0", "10 XB", "9" * 400, 10**40, "", -5, 0.5)
_TIMES: tuple[Any, ...] = ("10m", "90s", "1.5h", "0s", 5, 2.5, "9" * 400 + "h", math.inf, math.nan)
_SHARES: tuple[Any, ...] = (0, 0.01, 1, 5, 1000.5, 1e308, math.inf, math.nan, -1, "10%", 10**400)
_COUNTS: tuple[Any, ...] = (
    *("auto", 1, 0, 2**40, {"min": 0, "max": 2}, {"min": 3, "max": 1}, {"max": 0}, {}, "two", [1]),
)
_VALUES: dict[str, tuple[Any, ...]] = {
    "kind": ("score", "train", "Score", None, 1, ["score"]),
    "model": (MODEL, "", "/nowhere/model", "no such model", None, 1),
    "input.path": (INPUT, [INPUT], [], "", ["", INPUT], f"{INPUT}/*.parquet", f"{INPUT}/none", {}),
    "input.text": (
        *("text", "{text}", "{n}: {text}", "{", "}", "{}", "{text!r}", "{text:>10}", "{0}", "nope"),
        *("{text}{nope}", "{text[0]}", "{text.a}", "", "{{text}}", "{{", "{" * 300, " ", "{n}"),
    ),
    "input.max_text_bytes": _SIZES,
    "output.path": (OUTPUT, f"{OUTPUT}/deeper", INPUT, f"{INPUT}/out", "", None, "ftp://x/y"),
    "output.keep": (None, "*", [], ["id"], ["n", "id", "n"], ["nope"], "id", [1], {}, ["text"]),
    "output.format": ("auto", "wide", "sparse", "dense", "WIDE", 1, None),
    "output.k": _NUMBERS,
    "output.floor": (0, 0.01, 0.5, 0.999999, 1, -0.0, 5e-324, math.nan, math.inf, "x"),
    "units": (None, {}, [], 7, "rows=7", {"rows": 2}),
    "units.rows": _NUMBERS,
    "units.bytes": _SIZES,
    "long": (None, {}, "truncate", {"policy": "skip"}, []),
    "long.policy": ("truncate", "skip", "windows", None, 1),
    "long.max_tokens": (3, 8, 64, 2, 4096, 10**9, 10**30, None, "8", 3.0),
    "batching.max_batch_tokens": ("auto", 12, 64, 7, 10**9, 10**30, "AUTO", None),
    "engine.name": ("auto", "torch", "openvino", None),
    "engine.dtype": ("auto", "float32", "int8", "bf16"),
    "tokenizers.count": _COUNTS,
    "actors.count": _COUNTS,
    "actors.cpus": ("auto", 1, 0.5, 0, -1, math.nan, math.inf, 10**400),
    "actors.gpus": ("auto", 0, 1, "all", -0.5),
    "actors.labels": ({}, {"a": "b"}, {"a": 1}, {1: "a"}, None, []),
    "limits.bad_rows": _SHARES,
    "limits.bad_files": _SHARES,
    "limits.no_progress": _TIMES,
    "limits.grace": _TIMES,
    "lease.expiry": _TIMES,
    "ray.address": (None, "auto", 1, ""),
}
_FRAGMENTS = (
    *(
        "\t",
        "&a ",
        "*a",
        "!!python/object/apply:os.getcwd []",
        "!!int x",
        "!!binary é",
        "!!float x",
    ),
    *("<<: *a\n", "<<: {rows: 1}\n", "\x00", "\ufeff", "\n---\n", "\n...\n", "%YAML 9.9\n", "{{"),
    *("}", "[", "'", '"', "2026-99-99", ": ", "? ", "- ", "|", ">", "@", "`", "1:99:99", "0x", "="),
    *(".nan", "!!timestamp 1", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "0b", "0o9", "~"),
    *("\x85", "\u2028", "!x y", "!!null x", "!!bool x", "!!str [a]", "\x1b[31m", "\U0001f600", "#"),
)
_TEXTS = (
    *(b"", b"\n", b"---", b"null", b"[]", b"score", b"3", b"\xff\xfe", b"\xfe\xff\x00a", b"\x00"),
    *(b"[" * 3000, b"{a: " * 800 + b"1" + b"}" * 800, b"- " * 2000, b"a: &a [*a]", b"&a {b: *a}"),
    *(b"? " * 1500, b"model: &x [*x]\ninput: *x\noutput: *x\n", b"!!python/name:os.system"),
    b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
    b"d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\nmodel: [*d,*d,*d,*d,*d,*d,*d]\ninput: in\noutput: out\n",
    *(b"model: m\ninput: i\noutput: o\nunits: {rows: " + b"9" * 5000 + b"}",),
    *(b"model: m\nmodel: n\ninput: i\noutput: o\n", b"? [a, b]\n: c\n", b"? {a: b}\n: c\n"),
    *(
        b"model: m\ninput: i\noutput: " + b"o" * 3000,
        b"m" * 5000 + b": 1\n",
        b"1: 2\n",
        b"a: 1_000",
    ),
    *(b"model: m\ninput: " + b"[" * 200 + b"]" * 200 + b"\noutput: o\n",),
)
_OVERRIDES = (
    *("", "=", "a", "units.rows", "units..rows=1", ".=1", "units.rows=", "units.rows={", "=1"),
    *(f"{'x' * 1000}=1", "units.rows.x=1", "units.rows=\x00", "output.keep=*", "output.keep=[*a]"),
    *("input=1", "input={text: text}", "output.path.x=1", "units=&a [*a]", f"{'a.' * 2000}b=1"),
    *("model=\n", "limits.grace=!!float x", "units.rows=2026-99-99", "é=ü", "units.rows=[[[["),
)


def job_texts() -> tuple[st.SearchStrategy[bytes], st.SearchStrategy[tuple[str, ...]]]:
    """Strategies of the text of a job file, and of overrides for it."""
    return _texts(), _overrides()


@st.composite
def _texts(draw: st.DrawFn) -> bytes:
    if draw(st.integers(0, 15)) == 15:
        return draw(st.one_of(st.sampled_from(_TEXTS), st.binary(max_size=40)))
    tree: dict[Any, Any] = {"model": MODEL, "input": {"path": INPUT}, "output": {"path": OUTPUT}}
    for key in draw(st.lists(st.sampled_from(sorted(_VALUES)), max_size=5)):
        _set(tree, key, draw(st.sampled_from(_VALUES[key])))
    if draw(st.integers(0, 7)) == 7:
        _spoil(draw, tree)
    text = _dumped(tree, draw(st.integers(0, 4)))
    data = text.encode("utf-8", "surrogatepass")
    for _ in range(draw(st.sampled_from((0,) * 6 + (1, 2)))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 5)):
            case 0:
                data = data[:at]
            case 1:
                data = data[:at] + draw(st.binary(min_size=1, max_size=3)) + data[at:]
            case _:
                data = data[:at] + draw(st.sampled_from(_FRAGMENTS)).encode() + data[at:]
    return data


def _set(tree: dict[Any, Any], dotted: str, value: Any) -> None:
    section, _, key = dotted.partition(".")
    if not key:
        tree[section] = value
    elif isinstance(tree.setdefault(section, {}), dict):
        tree[section][key] = value


def _spoil(draw: st.DrawFn, tree: dict[Any, Any]) -> None:
    """A slip as people make it, or worse."""
    section = draw(st.sampled_from(sorted(tree)))
    node = tree[section]
    match draw(st.integers(0, 6)):
        case 0:
            tree[section + "s"] = tree.pop(section)
        case 1:
            del tree[section]
        case 2:
            tree[section] = draw(st.sampled_from(([], 1, None, "x", {}, [[]], True, "x" * 2000)))
        case 3:
            tree[draw(st.sampled_from((1, None, 2.5, True, "x" * 900, "a\nb", "")))] = node
        case 4 if isinstance(node, dict) and node:
            key = draw(st.sampled_from(sorted(node, key=str)))
            node[str(key)[::-1]] = node.pop(key)
        case 5 if isinstance(node, dict):
            node["extra"] = {"a": {"b": [1, {"c": node.get("path")}]}}
        case _:
            for _ in range(50):
                node = {"deeper": node}
            tree[section] = node


def _dumped(tree: dict[Any, Any], form: int) -> str:
    match form:
        case 0:
            return yaml.safe_dump(tree, default_flow_style=True, width=10**6, allow_unicode=True)
        case 1:
            return json.dumps({str(key): value for key, value in tree.items()})
        case 2:
            return yaml.safe_dump(tree, default_style='"', sort_keys=False)
        case _:
            return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


@st.composite
def _overrides(draw: st.DrawFn) -> tuple[str, ...]:
    found = []
    for _ in range(draw(st.sampled_from((0,) * 5 + (1, 2)))):
        if draw(st.integers(0, 4)) == 4:
            found.append(draw(st.one_of(st.sampled_from(_OVERRIDES), st.text(max_size=20))))
            continue
        key = draw(st.sampled_from(sorted(_VALUES)))
        value = draw(st.sampled_from(_VALUES[key]))
        found.append(f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()}")
    return tuple(found)
