"""Pages and pictures of the site that are not in docs/: made from the commands, or kept where they belong."""

from pathlib import Path

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

from clipguard.cli import app, attack, bench, certify, compare, doctor, finetune

ROOT = Path(__file__).resolve().parents[1]
PICTURES = {"images/finetuning_study.png": ROOT / "benchmarks" / "results" / "finetuning_study.png"}


INTRODUCTION = """# Settings

Every setting is declared once. On the command line it is the flag; in a file for `--config` (TOML, YAML or JSON) it
is the name, and so it is in Python for `clipguard.bench`, `compare` and `finetune` (`clipguard.attack` and `doctor`
take a model and images: [Python](python.md)). The file may also be the `results.json` or `run.json` of an earlier
run. What is given on the command line wins over the file, the file over a protocol or preset, those
over the defaults.

An eps in a file is as on the command line: `eps: 4` is 4/255 for linf. In Python a number is pixels of [0,1]
(`4 / 255`), a text is as on the command line (`"4"`).

`report`, `convert`, `merge`, `inspect`, `list` and `store` take `--config`, too, with their options by name.
"""


def settings_page() -> str:
    """The settings of the six commands that share them, from their declarations."""
    parts = [INTRODUCTION]
    for name, module in (
        ("bench", bench),
        ("attack", attack),
        ("doctor", doctor),
        ("certify", certify),
        ("compare", compare),
        ("finetune", finetune),
    ):
        parts.append(f"\n## {name}\n\n| Name | Flag | Value | Default | |\n|---|---|---|---|---|\n")
        for setting in module.SETTINGS.values():
            value = ", ".join(f"`{choice}`" for choice in setting.choices) or setting.describe()
            flags = ", ".join(f"`{flag}`" for flag in (setting.flag, setting.letter, setting.off) if flag)
            text = setting.help.replace("|", "\\|").replace("<", "&lt;")
            parts.append(f"| `{setting.name}` | {flags} | {value} | {setting.default_text or 'none'} | {text} |\n")
    return "".join(parts)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add `cli.md`, made from the commands so that it cannot differ, `security.md`, and pictures of studies."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="clipguard")
    page = get_docs_for_click(obj=command, ctx=context, name="clipguard", title="Command line")
    files.append(File.generated(config, "cli.md", content=page))
    security = (ROOT / "SECURITY.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "security.md", content=security))
    files.append(File.generated(config, "settings.md", content=settings_page()))
    for name, path in PICTURES.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files
