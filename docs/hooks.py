"""What the site has beyond the pages of docs/: references made from the code, files from elsewhere.

Commands are those of the Typer app, jobs those of the pydantic tree: neither can fall behind the
code. Pages such as `cluster/README.md` stay where their folder is, and are shown here too; links
to files that are no page become their names.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[1]
ELSEWHERE = {
    "cluster/README.md": "cluster.md",
    "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files of the repository that are pages, and where."""
INTRODUCTIONS = {
    "commands": "Data goes to stdout, talk to stderr; every command that reads has `--json`. Exit "
    "codes are in [operations](../operations.md#in-the-morning-what-each-exit-code-asks-of-you).",
    "jobs": "A job is a YAML file; what an option of a command says, and more, fits into it. "
    "`--set section.key=value` overrides a key, `ray-mlc config render JOB` shows all of them, "
    "`ray-mlc config schema` prints the JSON schema with which editors complete them.",
}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)]*)?\)")


def pages_elsewhere() -> dict[str, str]:
    """Source in the repository by page of the site, results of benchmarks included."""
    results = sorted((REPOSITORY / "benchmarks" / "results").glob("*.md"), reverse=True)
    found = {page: source for source, page in ELSEWHERE.items()}
    return found | {f"results/{path.name}": f"benchmarks/results/{path.name}" for path in results}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made or lies elsewhere."""
    for page, source in pages_elsewhere().items():
        text = (REPOSITORY / source).read_text("utf-8")
        if page == "benchmarks.md":
            text += f"\n## All results\n\n{results()}\n"
        files.append(File.generated(config, page, content=text))
    for page, text in {"commands": commands(), "jobs": jobs()}.items():
        files.append(File.generated(config, f"reference/{page}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository lead to their pages, or become plain words."""
    del config
    uri = page.file.src_uri
    source = pages_elsewhere().get(uri, f"docs/{uri}")
    return linked(markdown, source, uri, set(files.src_uris))


def linked(markdown: str, source: str, page: str, pages: set[str]) -> str:
    """Text of a file of the repository with its links as the site has them.

    Args:
        markdown: The text.
        source: Its file, from the root of the repository.
        page: Where the site has it.
        pages: All pages of the site.
    """
    places = {file: place for place, file in pages_elsewhere().items()}

    def replace(found: re.Match[str]) -> str:
        text, target, anchor = found.group(1), found.group(2), found.group(3) or ""
        if re.match(r"[a-z]+:", target):
            return found.group(0)
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        place = places.get(file, file.removeprefix("docs/"))
        if place not in pages:
            return text if file in text else f"{text} (`{file}`)"
        return f"[{text}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor})"

    return LINK.sub(replace, markdown)


def results() -> str:
    """A list of all results, with the title of each."""
    lines = []
    for source in pages_elsewhere().values():
        if source.startswith("benchmarks/results/"):
            title = (REPOSITORY / source).read_text("utf-8").partition("\n")[0].lstrip("# ")
            lines.append(f"- [{title}]({source.removeprefix('benchmarks/')})")
    return "\n".join(lines)


def commands() -> str:
    """All commands with their options, as Typer tells them."""
    import typer
    from typer.cli import get_docs_for_click

    from ray_mlc.cli.app import app

    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="ray-mlc")
    text = get_docs_for_click(obj=command, ctx=context, name="ray-mlc", title="Commands")
    head, rest = text.split("\n", 1)
    return f"{head}\n\n{INTRODUCTIONS['commands']}\n{rest}"


def jobs() -> str:
    """All kinds of jobs with their keys, from the tree that decodes them."""
    from ray_mlc.cluster.config import ClusterConfig
    from ray_mlc.config import ManyScoreJob, ScoreJob
    from ray_mlc.runtime.job_ids import KINDS

    lines = ["# Jobs", "", INTRODUCTIONS["jobs"], ""]
    for name, kind in {**KINDS, "cluster": ClusterConfig}.items():
        lines += [f"## {name}", ""]
        lines += [kind.__doc__ or "", "", "| key | default | |", "|---|---|---|"]
        lines += _rows(kind.model_json_schema())
        lines.append("")
        if kind is ScoreJob:
            lines += [SEVERAL_MODELS, "", "| key | |", "|---|---|"]
            for key in ("model", "output", "decision"):
                about = " ".join((ManyScoreJob.model_fields[key].description or "").split())
                lines.append(f"| `{key}.<name>` | {about} |")
            lines.append("")
    return "\n".join(lines)


SEVERAL_MODELS = (
    "Several models read a corpus in one pass where `model` is a mapping, by names of your own; "
    "`output`, and maybe `decision`, are then mappings by the same names:"
)


def _rows(schema: Mapping[str, Any]) -> Iterator[str]:
    """A table row for each key of a JSON schema, those of sections below their name."""

    def walk(section: Mapping[str, Any], prefix: str) -> Iterator[str]:
        for key, field in section.get("properties", {}).items():
            name = f"{prefix}{key}"
            needed = key in section.get("required", ())
            below = _section(field, schema)
            default = "" if needed or below else f"`{_shown(field.get('default'))}`"
            about = " ".join(field.get("description", "").split()).replace("|", "\\|")
            values = _values(field, schema)
            yield f"| `{name}` | {'needed' if needed else default} | {about}{values} |"
            if below:
                yield from walk(below, f"{name}.")

    yield from walk(schema, "")


def _resolved(field: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = field.get("$ref")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else field  # type: ignore[no-any-return]


def _section(field: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The section that a key holds, if it does."""
    for option in (field, *field.get("anyOf", ())):
        found = _resolved(option, schema)
        if "properties" in found:
            return found
    return None


def _values(field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What a key may be, where that is a list of words."""
    words = [
        word
        for option in (field, *field.get("anyOf", ()))
        for word in _resolved(option, schema).get("enum", ())
    ]
    return f" One of {', '.join(f'`{_shown(word)}`' for word in words)}." if words else ""


def _shown(value: object) -> str:
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")
