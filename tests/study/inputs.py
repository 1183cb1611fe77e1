"""Inputs for the reader of studies, each made from a seed and a number alone: mutated, generated, and hostile ones."""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

SMALL = """\
schema: ablate/v1
name: demo
task: json:loads
metrics: {a: {goal: max}}
settings: {a: 1, b: {c: [1], d: null}}
steps:
- name: x
  set: {a: 2}
- {name: y, requires: [x], set: {b.c: [2], b.d: 5}}
designs: [ladder, leave-one-out]
profiles:
  quick: {seeds: 1, steps: {y: null}}
"""


@dataclass(frozen=True)
class Input:
    """One study file, and the profile that is asked for."""

    kind: str
    data: bytes
    profile: str | None = None


def study_input(seed: int, number: int) -> Input:
    """Return the input of this number: the same in every process and on every machine."""
    rng = random.Random(f"{seed}:{number}")
    kind = rng.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]
    data = KINDS[kind][0](rng)
    profiles = [name for name in ("quick", "laptop") if name.encode() in data]
    return Input(kind, data, rng.choice([*profiles, None, "nosuch"]) if rng.random() < 0.4 else None)


# --- mutations of real studies -------------------------------------------------------------------------------------

Mutation = Callable[[random.Random, list[str]], list[str]]


@cache
def real_studies() -> tuple[list[str], ...]:
    """Return the lines of the studies of this repository, the flagship first; remarks left out, for more hits."""
    flagship = (ROOT / "studies" / "basenet.yaml").read_text()
    readme = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    written = [path.read_bytes() for path in sorted((Path(__file__).parent / "malformed").glob("*.yaml"))]
    texts = [flagship, SMALL, *readme, *(data.decode("utf-8", "surrogateescape") for data in written)]
    lines = [[line for line in text.split("\n") if not line.lstrip().startswith("#")] for text in texts]
    return tuple(each for each in lines if len(each) > 2)


def delete_line(rng: random.Random, lines: list[str]) -> list[str]:
    index = rng.randrange(len(lines))
    return lines[:index] + lines[index + 1 :]


def duplicate_line(rng: random.Random, lines: list[str]) -> list[str]:
    index = rng.randrange(len(lines))
    return lines[: index + 1] + lines[index:]


def swap_lines(rng: random.Random, lines: list[str]) -> list[str]:
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    result = list(lines)
    result[first], result[second] = result[second], result[first]
    return result


def shuffle_lines(rng: random.Random, lines: list[str]) -> list[str]:
    start = rng.randrange(len(lines))
    part = lines[start : start + rng.randrange(2, 9)]
    return lines[:start] + rng.sample(part, len(part)) + lines[start + len(part) :]


def indent_line(rng: random.Random, lines: list[str]) -> list[str]:
    index = rng.randrange(len(lines))
    changed = "  " + lines[index] if rng.random() < 0.5 else lines[index][2:]
    return [*lines[:index], changed, *lines[index + 1 :]]


def graft_lines(rng: random.Random, lines: list[str]) -> list[str]:
    """Put a few lines of another study in between."""
    other = rng.choice(real_studies())
    start, index = rng.randrange(len(other)), rng.randrange(len(lines))
    return lines[:index] + other[start : start + rng.randrange(1, 6)] + lines[index:]


SIGNS = "abz09 .:-,[]{}'\"#&*!|>%@`\\\t~?=\0\x1b\r\x85\u2028\u202e\ufeff\ud800\ud7ffß"


def change_character(rng: random.Random, lines: list[str]) -> list[str]:
    index = rng.randrange(len(lines))
    line = lines[index]
    at = rng.randrange(len(line) + 1)
    return [*lines[:index], line[:at] + rng.choice(SIGNS) + line[at + rng.randrange(2) :], *lines[index + 1 :]]


VALUES = [
    "null", "true", "no", "-1", "0", "0.5", "1e400", "1e-400", ".nan", "[]", "{}", "[[]]", '"1"', "''", "baseline",
    "full", "seed", "<<", "*a", "&a x", "!!int 3", "9" * 30, "-0x1f", "0o17", "010", "1:30", "2024-01-01", "~", "- x",
    "[1, 2, 3]", "{a: 1}", "{set: {a: 1}}", "|", "> x", "? x", "%YAML 1.1", "---", "...", "\u202ex", "x" * 70,
    "2147483648",
]  # fmt: skip


def change_word(rng: random.Random, lines: list[str]) -> list[str]:
    """Put another word of the file, or one of another type, in the place of a word."""
    index = rng.randrange(len(lines))
    words = re.findall(r"[\w./-]+", lines[index])
    if not words:
        return lines
    other = rng.choice([*VALUES, *re.findall(r"[\w./-]+", rng.choice(lines))])
    return [*lines[:index], lines[index].replace(rng.choice(words), other, 1), *lines[index + 1 :]]


def swap_values(rng: random.Random, lines: list[str]) -> list[str]:
    """Give two keys each other's value."""
    places = [index for index, line in enumerate(lines) if ": " in line]
    if len(places) < 2:
        return lines
    first, second = rng.sample(places, 2)
    (key, _, value), (other_key, _, other) = (lines[index].partition(": ") for index in (first, second))
    result = list(lines)
    result[first], result[second] = f"{key}: {other}", f"{other_key}: {value}"
    return result


MUTATIONS: list[Mutation] = [
    delete_line, duplicate_line, swap_lines, shuffle_lines, indent_line, graft_lines, change_character, change_word,
    change_word, swap_values,
]  # fmt: skip


def mutated(rng: random.Random, lines: list[str]) -> bytes:
    for _ in range(rng.choice([1, 1, 1, 2, 3, 5])):
        lines = rng.choice(MUTATIONS)(rng, lines) or [""]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def mutated_flagship(rng: random.Random) -> bytes:
    return mutated(rng, real_studies()[0])


def mutated_study(rng: random.Random) -> bytes:
    return mutated(rng, rng.choice(real_studies()[1:]))


def damaged_bytes(rng: random.Random) -> bytes:
    data = bytearray("\n".join(rng.choice(real_studies()[1:])).encode("utf-8", "surrogateescape"))
    for _ in range(rng.choice([1, 1, 3, 10, 40])):
        place = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                data[place] = rng.randrange(256)
            case 2:
                del data[place : place + rng.randrange(1, 30)]
            case _:
                data[place:place] = rng.randbytes(rng.randrange(1, 9))
        data = data or bytearray(b"x")
    return bytes(data)


def random_bytes(rng: random.Random) -> bytes:
    match rng.randrange(3):
        case 0:
            return rng.randbytes(rng.randrange(400))
        case 1:
            return "".join(rng.choices(string.printable + SIGNS, k=rng.randrange(400))).encode("utf-8", "surrogatepass")
        case _:
            return SMALL.encode() + rng.randbytes(rng.randrange(1, 60))


# --- studies by the grammar ----------------------------------------------------------------------------------------


def grammatical(rng: random.Random) -> bytes:
    """Return a study that uses any word of the format; sound, or with one or two places spoilt."""
    study = a_study(rng)
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        spoil(rng, study)
    text = json.dumps(study, ensure_ascii=rng.random() < 0.5) if rng.random() < 0.4 else as_block(study)
    return text.encode("utf-8", "surrogatepass")


def a_study(rng: random.Random) -> dict[str, Any]:
    names = rng.sample(["x", "y", "z", "wide-2", "norm", "skip", "a1", "b-c-d", "deep", "last"], rng.randrange(6))
    study: dict[str, Any] = {
        "schema": "ablate/v1",
        "name": rng.choice(["demo", "a", "a-1", "x" * 64]),
        "task": rng.choice(["json:loads", "os.path:join", "json:loads"]),
        "metrics": {"acc": a_metric(rng), **({"loss": {"goal": "min"}} if rng.random() < 0.4 else {})},
        "settings": {"k": 1, "lr": 0.1, "on": False, "t": "text", "g": {"h": [1, 2], "n": None}},
    }
    if names:
        study["steps"] = [a_step(rng, names, index) for index in range(len(names))]
    parts: dict[str, Callable[[], Any]] = {
        "question": lambda: rng.choice(["", "why?", "a | b `c` <d>"]),
        "designs": lambda: [a_design(rng, names) for _ in range(rng.choice([1, 1, 2, 3]))],
        "seeds": lambda: seeds(rng),
        "confirm_seeds": lambda: rng.choice([1, 3, [17, 18], [1], 10_000]),
        "analysis": lambda: some(rng, alpha=[0.05, 0.1, 0.01], correction=["holm", "bh"], pairing=["seed", "none"],
                                 select=["last"], scope=["test-set", "population"]),
        "execution": lambda: some(rng, dtype=["float32", "bfloat16"], threads=[1, 2, 1024]),
        "resources": lambda: some(rng, gpus=[0, 1], cpus=[1, 64, None], timeout=["2h", 90, "30 m", 1.5],
                                  stall_timeout=["10m", None], retries=[0, 3]),
        "reference": lambda: {"source": "a paper", "values": {"acc": dict.fromkeys(["baseline", *names], 71.5)}},
        "assumed": lambda: dict.fromkeys(["lr", "g.h", *names], "not said"),
        "profiles": lambda: {"quick": {"seeds": 1, "settings": {"lr": 1, "g": {"n": 3}}},
                             "laptop": {"steps": dict.fromkeys(names[:1])}},
    }  # fmt: skip
    study.update({key: make() for key, make in parts.items() if rng.random() < 0.2})
    return study


def some(rng: random.Random, **choices: list[Any]) -> dict[str, Any]:
    return {key: rng.choice(values) for key, values in choices.items() if rng.random() < 0.5}


def a_metric(rng: random.Random) -> dict[str, Any]:
    words = some(rng, unit=["%", "s", ""], title=["accuracy"], margin=[0.5, 1], on_diverged=[0, 1.0, -3.5])
    return {"goal": rng.choice(["max", "min"]), **words}


def a_step(rng: random.Random, names: list[str], index: int) -> dict[str, Any]:
    patch = some(rng, **{"k": [index + 2, 3, 2.0], "lr": [0.2, 1, 1e-5], "on": [True], "t": ["other", "1"],
                         "g.h": [[3], []], "g.n": [1, 2, index]})  # fmt: skip
    step: dict[str, Any] = {"name": names[index], "set": patch or {"k": index + 2}}
    if index and rng.random() < 0.3:
        step["requires"] = rng.sample(names[:index], 1)
    if rng.random() < 0.2:
        step["from"] = rng.choice(["baseline", *names[:index]])
    if rng.random() < 0.05:
        step["conflicts"] = [rng.choice(names)]
    words = some(rng, branch=[True, False], group=["g", "h"], title=["a title", "ü → ß", ""])
    return {**step, **{key: value for key, value in words.items() if rng.random() < 0.5}}


def a_design(rng: random.Random, names: list[str]) -> Any:
    chosen = rng.sample(names, rng.randrange(len(names) + 1))
    plain = ["ladder", "leave-one-out", "one-at-a-time", "factorial", "fractional", "path"]
    resolution = rng.choice(["III", "IV", "V", "VI"])
    options = [
        {"leave-one-out": {"except": chosen}},
        {"factorial": chosen},
        {"fractional": chosen, "resolution": resolution},
    ]
    return rng.choice([*plain, *options])


def seeds(rng: random.Random) -> Any:
    return rng.choice([
        1, 3, 5, [1, 2, 3], [0, 2**31 - 1], {"looks": [3, 5, 8, 12, 20]}, {"looks": [3, 6], "weights": [0.5, 0.5]},
        {"mode": "precision", "half_width": 0.5}, {"mode": "precision", "half_width": 2, "pilot": 4, "most": 9},
    ])  # fmt: skip


ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**25, 0.5, -1.5, 1e308, "", " ", "x", "1", "null", "a.b", "=1+1",
    "\u202e", "e\u0301", "\x1b[2J", "\ud800", "x" * 300, [], {}, [[]], [None], {"": 1}, {"a": {"b": {}}}, ["x", "x"],
    [1] * 40,
]  # fmt: skip


def spoil(rng: random.Random, value: Any) -> None:
    """Change one place of a tree: another value, another key, one item more or less."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(value[key], (dict, list)) and value[key] and rng.random() < 0.7:
            value = value[key]
            continue
        match rng.randrange(5):
            case 0 | 1:
                value[key] = rng.choice(ODD)
            case 2:
                del value[key]
            case 3 if isinstance(value, dict):
                value[rng.choice(["seed", "namee", "from", "set", "x", "", "a.b", "looks", "budget"])] = rng.choice(ODD)
            case 3:
                value.append(value[key])
            case _ if isinstance(value, dict):
                old = value.pop(key)
                name = str(key)
                at = rng.randrange(len(name) + 1)
                value[name[:at] + rng.choice("abz-_ A") + name[at + 1 :]] = old
            case _:
                value.insert(0, rng.choice(ODD))
        return


def as_block(value: Any, indent: int = 0) -> str:
    """Return a tree as YAML in block style, scalars as JSON writes them."""
    pad = "  " * indent
    if isinstance(value, dict) and value:
        lines = [f"{pad}{json.dumps(key)}:{_below(item, indent)}" for key, item in value.items()]
    elif isinstance(value, list) and value:
        lines = [f"{pad}-{_below(item, indent)}" for item in value]
    else:
        return pad + json.dumps(value, ensure_ascii=False)
    return "\n".join(lines)


def _below(value: Any, indent: int) -> str:
    if isinstance(value, (dict, list)) and value:
        return "\n" + as_block(value, indent + 1)
    return " " + json.dumps(value, ensure_ascii=False)


# --- YAML that is made to hurt ---------------------------------------------------------------------------------------

ENCODINGS = ["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "shift_jis", "utf-7", "utf-8-sig", "cp037"]


def torture(rng: random.Random) -> bytes:
    return rng.choice(TORTURES)(rng)


def _spliced(rng: random.Random, hostile: str) -> bytes:
    """Put a piece into a study: as a value, as a line, or at either end."""
    lines = SMALL.split("\n")
    index = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            key = lines[index].partition(":")[0]
            lines[index] = f"{key}: {hostile}"
        case 1:
            lines.insert(index, hostile)
        case 2:
            lines = [*lines, hostile]
        case _:
            lines = [hostile, *lines]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _anchors(rng: random.Random) -> bytes:
    depth, width = rng.randrange(1, 12), rng.randrange(1, 10)
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]\n" for i in range(1, depth))
    loops = ["&a [*a]", "&a {b: *a}", "{a: &x 1, *x : 2}", "*nowhere", "&a &b x", "&a", "*", "&" + "a" * 300 + " x"]
    return _spliced(rng, rng.choice([bomb, *loops]))


def _tags(rng: random.Random) -> bytes:
    names = ["!!python/object/apply:os.system [touch canary]", "!!python/name:os.system", "!!binary aGk=", "!!set {a}",
             "!!merge x", "!<tag:x,2000:y> z", "!e!x y", "! x", "!!str 1", "!!timestamp 2001-01-01",
             "!" + "x" * 300]  # fmt: skip
    return _spliced(rng, rng.choice(names))


def _nested(rng: random.Random) -> bytes:
    depth = rng.choice([10, 49, 50, 51, 60, 500, 3000])
    opening, closing = rng.choice([("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", ""), ("[[", "")])
    return _spliced(rng, opening * depth + rng.choice(["", "1"]) + closing * rng.choice([0, depth]))


def _numbers(rng: random.Random) -> bytes:
    long = [
        "9" * rng.choice([19, 20, 400, 5000]),
        "0x" + "f" * rng.choice([8, 16, 400]),
        "1e" + "9" * rng.choice([3, 300]),
    ]
    numbers = [*long, "-.inf", ".NaN", "1_000", "0b11", "+1", "1." + "0" * 400 + "1", "4.9e-324", "-0.0"]  # fmt: skip
    return _spliced(rng, rng.choice(numbers))


def _signs(rng: random.Random) -> bytes:
    signs = [
        "\0",
        "\ufeff",
        "\r",
        "\t",
        "\x85",
        "\u2028",
        "\u2029",
        "\x1b[31m",
        "\u202e",
        "\u200b",
        "\ud800",
        "\ufffe",
        "\x7f",
    ]
    data = bytearray(SMALL.encode())
    for _ in range(rng.choice([1, 1, 3])):
        place = rng.randrange(len(data))
        data[place:place] = rng.choice(signs).encode("utf-8", "surrogatepass")
    return bytes(data)


def _other_encoding(rng: random.Random) -> bytes:
    text = SMALL.replace("demo", rng.choice(["demo", "démo", "デモ"]))
    return text.encode(rng.choice(ENCODINGS), "replace")


def _line_ends(rng: random.Random) -> bytes:
    return SMALL.replace("\n", rng.choice(["\r\n", "\r", "\n\r", "\n\n", "\x85", "\u2028", "\n\t"])).encode()


def _merges(rng: random.Random) -> bytes:
    pieces = ["<<: {a: 1}", "<<: *x", '"<<": 1', "a: 1\na: 2", "? [a]\n: 1", "? {a: b}\n: c", "--- \nname: two",
              "...\nx",
              "%YAML 1.1\n---\na: 1", "%TAG ! tag:x:\n---\n!a b", "a: b: c", "- - - x", "'", '"', "|2\n x", ">+\n x",
              "@x", "`x`"]  # fmt: skip
    return _spliced(rng, rng.choice(pieces))


def _long(rng: random.Random) -> bytes:
    sign, length = rng.choice("x '\"?:-&*!#[{"), rng.choice([300, 5000, 30_000])
    return _spliced(rng, sign * length)


def _many(rng: random.Random) -> bytes:
    count = rng.choice([50, 300, 1001])
    steps = "".join(f"- {{name: s{i}, set: {{a: {i + 2}}}}}\n" for i in range(count))
    tail = rng.choice(
        ["", "designs: [factorial]\n", "designs: [path]\n", "designs: [one-at-a-time]\n", "seeds: 10000\n"]
    )
    return f"{SMALL.partition('steps:')[0]}steps:\n{steps}{tail}".encode()


TORTURES = [_anchors, _tags, _nested, _numbers, _signs, _other_encoding, _line_ends, _merges, _merges, _long, _many]

KINDS: dict[str, tuple[Callable[[random.Random], bytes], float]] = {
    "flagship": (mutated_flagship, 12),
    "study": (mutated_study, 26),
    "grammar": (grammatical, 30),
    "damaged": (damaged_bytes, 10),
    "bytes": (random_bytes, 4),
    "yaml": (torture, 18),
}
