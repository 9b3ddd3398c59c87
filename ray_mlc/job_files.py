"""Job files: YAML, options and `--set` overrides decoded into the tree of `config`, and back.

Whatever is wrong becomes one line that names the file, the dotted path, the value, and the nearest
key that exists.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from ray_mlc.config import ManyScoreJob, ScoreJob, Section, TrainJob
from ray_mlc.errors import ConfigError, first_line, redact

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120


def with_values(job: TrainJob, values: Mapping[str, object]) -> TrainJob:
    """A job with other values for some of its dotted keys.

    Raises:
        ConfigError: One line, if a key is unknown or a value wrong.
    """
    tree = job.model_dump(mode="json")
    for key, value in values.items():
        _assign(tree, key, value)
    try:
        return TrainJob.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(describe(error, TrainJob)) from None


JobT = TypeVar("JobT", bound=Section)


class _YamlLoader(yaml.SafeLoader):
    """SafeLoader that reads `5e-5` as a number: YAML 1.1 as PyYAML has it wants `5.0e-5`."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> object:
    """The value that YAML `text` stands for.

    Raises:
        yaml.YAMLError: Also where PyYAML lets other errors through: a date such as 2026-99-99, a
            number of more digits than Python reads, text after a tag that does not fit it, and
            nesting deeper than Python's stack.
    """
    try:
        return yaml.load(text, Loader=_YamlLoader)
    except RecursionError:
        problem = "nested too deep"
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        problem = f"a value cannot be read ({first_line(error)})"
    raise yaml.MarkedYAMLError(problem=problem)


def load_job(
    kind: type[JobT],
    job: str | Path | Mapping[str, object] | None = None,
    *,
    options: Mapping[str, object] | None = None,
    overrides: Sequence[str] = (),
) -> JobT:
    """Decode a job from a file, direct options and `--set` overrides; the later ones win.

    Args:
        kind: `ScoreJob`, `TrainJob`, `TuneJob`, or another section with a `kind`.
        job: YAML file, or its content, dotted keys allowed; None where options say it all.
        options: Dotted keys and values of direct options; None values are left out.
        overrides: `section.key=value` texts; the value is read as YAML.

    Raises:
        ConfigError: One line with file, dotted path, value, and what was expected.
    """
    where, tree = _tree(kind, job, options or {}, overrides)
    if kind is ScoreJob and isinstance(tree.get("model"), Mapping):
        raise ConfigError(
            f"{where}: model names several models, which this command does not take: give it a "
            "job file of one of them"
        )
    return _decoded(kind, tree, where)


def load_score_job(
    job: str | Path | Mapping[str, object] | None = None,
    *,
    options: Mapping[str, object] | None = None,
    overrides: Sequence[str] = (),
) -> ScoreJob | ManyScoreJob:
    """As `load_job`, for commands that score with several models too."""
    where, tree = _tree(ScoreJob, job, options or {}, overrides)
    if isinstance(tree.get("model"), Mapping):
        return _decoded(ManyScoreJob, tree, where)
    return _decoded(ScoreJob, tree, where)


def _tree(
    kind: type[Section],
    job: str | Path | Mapping[str, object] | None,
    options: Mapping[str, object],
    overrides: Sequence[str],
) -> tuple[str, dict[str, Any]]:
    """Where a job is from, and what it says before it is checked."""
    where = "options" if job is None or isinstance(job, Mapping) else str(job)
    tree: dict[str, Any] = {}
    if isinstance(job, Mapping):
        for key, value in job.items():
            _assign(tree, key, value)
    elif job is not None:
        tree = _read_yaml(Path(job))
    if job is not None:
        stated = tree.get("kind")
        expected = kind.model_fields["kind"].default
        if stated is not None and stated != expected:
            raise ConfigError(f"{where}: kind is {stated!r}, expected {expected!r} here")
    for key, value in options.items():
        if value is not None:
            _assign(tree, key, value)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {override}: expected section.key=value")
        try:
            # a bare * would be a YAML alias
            _assign(tree, key.strip(), "*" if text.strip() == "*" else parse_yaml(text))
        except yaml.YAMLError:
            raise ConfigError(f"--set {override}: the value is not valid YAML") from None
    return where, tree


def _decoded(kind: type[JobT], tree: Mapping[str, Any], where: str) -> JobT:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {describe(error, kind)}") from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


SectionT = TypeVar("SectionT", bound=Section)


def section(kind: type[SectionT], values: Mapping[str, object]) -> SectionT:
    """One section, of arguments that a caller gives.

    Raises:
        ConfigError: One line, if a key is unknown or a value wrong.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(describe(error, kind)) from None


def kind_of(path: str | Path) -> str:
    """What a job file says it is; `score` where it does not say.

    Raises:
        ConfigError: If the file cannot be read.
    """
    return str(_read_yaml(Path(path)).get("kind", "score"))


def schema_of(kind: type[Section]) -> dict[str, Any]:
    """JSON schema of the files of a kind; of `score` jobs those of one model or of several."""
    if kind is not ScoreJob:
        return kind.model_json_schema()
    return TypeAdapter(ScoreJob | ManyScoreJob).json_schema()


def dump_job(job: Section) -> str:
    """The resolved job as YAML that `load_job` reads back."""
    return yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such job file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a job file ({error})") from None
    try:
        tree = parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "syntax error"
        raise ConfigError(f"{path}: not valid YAML{place}: {problem}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of keys such as `kind: score`")
    return tree


def _assign(tree: dict[str, Any], dotted: str, value: object) -> None:
    """Set `tree[a][b] = value` for `a.b`; a bare path in the way becomes its long form."""
    *parents, last = dotted.split(".")
    node = tree
    for key in parents:
        child = node.get(key)
        # an output, or one of several
        is_place = key in ("input", "output") or (parents[0] == "output" and node is not tree)
        if is_place and isinstance(child, str | list):
            child = {"path": child}
        if child is not None and not isinstance(child, dict):
            raise ConfigError(f"{dotted}: {key} is {child!r}, which has no keys")
        node[key] = dict(child or {})
        node = node[key]
    is_place = last in ("input", "output") or parents == ["output"]
    if is_place and isinstance(node.get(last), dict) and not isinstance(value, dict):
        node[last] = {**node[last], "path": value}  # `--input PATH` beside a job's input section
    else:
        node[last] = value


def describe(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first problem of a validation error, on one line."""
    problems = error.errors(include_url=False)
    # unknown keys first: a misspelt key also shows up as its required sibling missing
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    location = [str(part) for part in problem["loc"] if not _is_union_branch(str(part))]
    dotted = ".".join(location)
    match problem["type"]:
        case "extra_forbidden":
            siblings = _keys_at(kind, location[:-1])
            near = difflib.get_close_matches(location[-1], siblings, n=1, cutoff=0.7)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(siblings)}"
            text = f"unknown key {dotted}: {hint}"
        case "missing":
            text = f"{dotted} is missing: name it in a job file, or as an option"
        case _:
            branches = [item for item in problems if _same_value(item, problem)]
            # of a union's branches, those that the value was shaped for say what is wrong with it
            fitting = [item for item in branches if not item["type"].endswith("_type")]
            if all(item["type"] == "literal_error" for item in fitting):
                fitting = branches
            said = [_expectation(item) for item in fitting]
            shown = _shown(problem["input"])
            text = f"{dotted} is {shown}: expected {' or '.join(dict.fromkeys(said))}"
    return redact(text.replace("\n", " "))


def _shown(value: object) -> str:
    """A value for an error text; a file may hold one that is huge, or contains itself."""
    try:
        return _REPR.repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number of very many digits"


def _same_value(one: ErrorDetails, other: ErrorDetails) -> bool:
    """Whether two problems are about one value: branches of a union."""
    length = min(len(one["loc"]), len(other["loc"]), 1)
    return one["input"] is other["input"] and one["loc"][:length] == other["loc"][:length]


def _expectation(problem: ErrorDetails) -> str:
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"]).removeprefix("expected ")
    message = problem["msg"].removeprefix("Input should be ")
    return message[:1].lower() + message[1:]


def _is_union_branch(part: str) -> bool:
    """Whether a part of a pydantic location names a union member instead of a key."""
    return bool(
        re.match(r"(literal\[|list\[|constrained-|function-|float$|int$|str$|Range$)", part)
    )


def _keys_at(kind: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Keys that the section at `location` knows."""
    section: type[BaseModel] = kind
    for key in location:
        field = section.model_fields.get(key)
        candidates = [] if field is None else [field.annotation, *_union(field.annotation)]
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                section = candidate
                break
    return list(section.model_fields)


def _union(annotation: object) -> tuple[object, ...]:
    return getattr(annotation, "__args__", ())
