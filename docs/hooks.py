"""Makes the page of the command line from the commands themselves, so that it cannot differ from them."""

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

from clipguard.cli import app


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add `cli.md`."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="clipguard")
    page = get_docs_for_click(obj=command, ctx=context, name="clipguard", title="Command line")
    files.append(File.generated(config, "cli.md", content=page))
    return files
