"""Pages and pictures of the site that are not in docs/: made from the commands, or kept where they belong."""

from pathlib import Path

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

from clipguard.cli import app

ROOT = Path(__file__).resolve().parents[1]
PICTURES = {"images/finetuning_study.png": ROOT / "benchmarks" / "results" / "finetuning_study.png"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add `cli.md`, made from the commands so that it cannot differ, `security.md`, and pictures of studies."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="clipguard")
    page = get_docs_for_click(obj=command, ctx=context, name="clipguard", title="Command line")
    files.append(File.generated(config, "cli.md", content=page))
    security = (ROOT / "SECURITY.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "security.md", content=security))
    for name, path in PICTURES.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files
