"""The Dockerfile: linted, and its steps run in a folder in place of an image, as far as that goes without a daemon."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from string import Template

import pytest

import clipguard

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "Dockerfile"
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
OWN = re.compile(r"(?<![\w.$}/])/(opt|src|results|cache)\b")  # the folders that the image gets
FOR_ROOT = ("useradd",)  # what only root can do is noted, not done


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments), without comments and with continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name.upper(), rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


@dataclass
class Image:
    """A folder that the steps are run in, and what they set."""

    root: Path
    environment: dict[str, str]
    user: str = "root"
    workdir: str = "/"
    commands: dict[str, list[str]] = field(default_factory=dict)

    @property
    def tools(self) -> Path:
        """Programs that come before the system's."""
        return self.root / "tools"

    def tool(self, name: str, script: str) -> None:
        """Put a shell script there."""
        self.tools.mkdir(exist_ok=True)
        (self.tools / name).write_text(f"#!/bin/bash\n{textwrap.dedent(script)}\n")
        (self.tools / name).chmod(0o755)

    def inside(self, text: str) -> str:
        """Text with the image's folders placed in ours."""
        return OWN.sub(lambda match: f"{self.root}/{match[1]}", text)

    def run(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """A command in the image's environment."""
        path = f"{self.tools}:{self.inside(self.environment.get('PATH', ''))}:/usr/local/bin:/usr/bin:/bin"
        environment = {key: self.inside(value) for key, value in self.environment.items()} | {"PATH": path}
        return subprocess.run(
            command, cwd=cwd or self.root, env=environment, capture_output=True, text=True, check=False
        )

    def build(self, **arguments: str) -> None:
        """Every step, in order."""
        given: dict[str, str] = {}
        for name, rest in instructions():
            known = given | {"PATH": "", **self.environment}
            if name == "ARG":
                key, _, default = rest.partition("=")
                given[key] = arguments.get(key, default)
            elif name == "FROM":
                assert Template(rest).substitute(given) == given["BASE"]
            elif name == "ENV":
                pairs = (pair.split("=", 1) for pair in rest.split())
                self.environment |= {key: Template(value).substitute(known).strip(":") for key, value in pairs}
            elif name == "COPY":
                self.copy(rest.split())
            elif name == "RUN":
                self.environment |= {key: value for key, value in given.items() if key != "BASE"}
                done = self.run("/bin/bash", "-c", self.inside(rest))  # of Debian's shells; `sh` is dash
                assert done.returncode == 0, f"{rest}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            elif name in ("ENTRYPOINT", "CMD"):
                self.commands[name] = json.loads(rest)
            elif name == "USER":
                self.user = rest
            elif name == "WORKDIR":
                self.workdir = rest
            else:
                pytest.fail(f"this test does not know {name}")

    def copy(self, words: list[str]) -> None:
        """Files of the context, without those that .dockerignore leaves out."""
        *sources, target = words
        to = Path(self.inside(target))
        to.mkdir(parents=True, exist_ok=True)
        for source in sources:
            assert sent(source), f".dockerignore keeps {source} out of the context"
            place = ROOT / source
            if place.is_dir():
                shutil.copytree(place, to, dirs_exist_ok=True, ignore=lambda folder, names: kept_out(folder, names))
            else:
                shutil.copy(place, to)


def ignored() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def sent(path: str) -> bool:
    """Whether a path reaches the daemon: the last line that fits it decides."""
    found = True
    for pattern in ignored():
        bare = pattern.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        if fnmatch.fnmatch(parts[0], bare) or ("**/" in pattern and any(fnmatch.fnmatch(part, bare) for part in parts)):
            found = pattern.startswith("!")
    return found


def kept_out(folder: str, names: list[str]) -> list[str]:
    within = Path(folder).relative_to(ROOT).as_posix()
    return [name for name in names if not sent(f"{within}/{name}")]


def empty_image(root: Path, **environment: str) -> Image:
    """Before the first step: a folder, and tools that note what only root can do."""
    made = Image(root, {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", **environment})
    for name in FOR_ROOT:
        made.tool(name, f'echo "{name} $*" >> {root}/as-root.log')
    return made


@pytest.fixture
def dry(tmp_path: Path) -> Image:
    """Built with a `python3` that makes an environment whose programs only note what they are asked for."""
    made = empty_image(tmp_path)
    made.tool(
        "python3",
        f"""
        echo "python3 $*" >> {tmp_path}/python.log
        eval "folder=\\${{$#}}"
        mkdir -p "$folder/bin"
        for name in python clipguard; do
            printf '#!/bin/sh\\necho "%s $*" >> {tmp_path}/python.log\\n' "$name" > "$folder/bin/$name"
            chmod +x "$folder/bin/$name"
        done""",
    )
    made.build()
    return made


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Built in earnest. Packages are those of this environment, by links, as if the base had them: no network."""
    if find_spec("hatchling") is None:
        pytest.skip("no hatchling here, which builds the package: pip install '.[dev]'")
    root = tmp_path_factory.mktemp("image")
    packages = root / "site-packages"  # by this name dill knows that it is not the user's code
    packages.mkdir()
    for entry in (
        entry for folder in sys.path if Path(folder).name == "site-packages" for entry in Path(folder).iterdir()
    ):
        if not re.match(r"_*(clipguard|editable|pycache)", entry.name) and entry.suffix != ".pth":
            (packages / entry.name).unlink(missing_ok=True)
            (packages / entry.name).symlink_to(entry)
    made = empty_image(
        root,
        PYTHONPATH=str(packages),
        PIP_NO_INDEX="1",
        PIP_NO_BUILD_ISOLATION="0",  # so pip spells "no isolation" in its environment
        PIP_CONFIG_FILE=os.devnull,
    )
    (made.tools / "python3").symlink_to(Path(sys.executable).resolve())
    made.build()
    return made


@pytest.mark.skipif(HADOLINT is None, reason="no hadolint here: pip install '.[dev]'")
def test_hadolint_has_nothing_to_say() -> None:
    assert HADOLINT is not None
    done = subprocess.run([HADOLINT, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_base_is_an_argument_and_the_user_has_no_rights() -> None:
    steps = instructions()
    assert steps[0][0] == "ARG"
    assert steps[0][1].startswith("BASE=python:3.")
    assert steps[1] == ("FROM", "${BASE}")
    users = [rest for name, rest in steps if name == "USER"]
    assert users
    assert all(
        user.isdigit() and int(user) >= 1000 for user in users
    )  # a number: a cluster can see that it is not root
    cuda = re.search(r"--build-arg BASE=(\S+?)`", DOCKERFILE.read_text())
    assert cuda
    assert cuda[1] in (ROOT / "docs" / "install.md").read_text()


def test_the_context_holds_what_is_copied_and_no_more() -> None:
    copied = {
        source.partition("/")[0] for name, rest in instructions() if name == "COPY" for source in rest.split()[:-1]
    }
    assert {path.name for path in ROOT.iterdir() if sent(path.name)} == copied
    assert not sent(".git")
    assert not sent("runs")
    assert not sent("clipguard/cli/__pycache__")


def test_the_steps_do_what_they_should_in_order(dry: Image) -> None:
    venv, source = dry.root / "opt" / "clipguard", dry.root / "src"
    asked = (dry.root / "python.log").read_text().splitlines()
    index = dict(pair for name, rest in instructions() if name == "ARG" for pair in [rest.split("=", 1)])["TORCH_INDEX"]
    assert asked == [
        f"python3 -m venv --system-site-packages {venv}",
        f"python -m pip install torch>=2.4 torchvision>=0.19 --extra-index-url {index}",
        f"python -m pip install {source}",
        "clipguard --version",
    ]
    with (ROOT / "pyproject.toml").open("rb") as file:
        needed = tomllib.load(file)["project"]["dependencies"]
    assert {"torch>=2.4", "torchvision>=0.19"} <= set(needed), "the Dockerfile asks for what the package asks for"
    assert {path.name for path in source.iterdir()} == {"clipguard", "pyproject.toml", "README.md", "LICENSE", "NOTICE"}
    assert not list(source.rglob("__pycache__"))
    assert (source / "clipguard" / "assets" / "models" / "tiny").is_dir()
    assert f"--uid {dry.user} " in (dry.root / "as-root.log").read_text()
    assert all((dry.root / name).stat().st_mode & 0o7777 == 0o1777 for name in ("results", "cache")), "for any --user"
    assert (dry.workdir, dry.environment["HOME"]) == ("/results", "/cache")
    assert dry.environment["PATH"].startswith("/opt/clipguard/bin")
    assert dry.commands == {"ENTRYPOINT": ["clipguard"], "CMD": ["--help"]}


@pytest.mark.slow
def test_the_steps_make_a_place_where_clipguard_runs(image: Image) -> None:
    done = image.run(*image.commands["ENTRYPOINT"], "--version")
    assert (done.returncode, done.stdout) == (0, f"clipguard {clipguard.__version__}\n"), done.stderr
    assert image.run(*image.commands["ENTRYPOINT"], *image.commands["CMD"]).returncode == 0
    where = image.run("python", "-c", "import clipguard; print(clipguard.__file__)").stdout
    assert where.startswith(f"{image.root}/opt/clipguard/"), "it is the installed copy"


@pytest.mark.slow
def test_it_benches_the_embedded_model_without_a_network(image: Image) -> None:
    words = ["bench", "--dataset", "emoji-food", "--attack", "pgd-10", "--eps", "4", "--n-samples", "8"]
    alone = ["unshare", "--map-root-user", "--net"] if shutil.which("unshare") else []
    if alone and subprocess.run([*alone, "true"], check=False, capture_output=True).returncode != 0:
        alone = []
    done = image.run(*alone, *image.commands["ENTRYPOINT"], *words, cwd=image.root / "results")
    assert done.returncode == 0, done.stderr
    assert "emoji-food" in done.stdout
    assert list((image.root / "results" / "runs").glob("*/results.json"))
    assert {path.name for path in (image.root / "cache").iterdir()} <= {
        "clipguard",
        "huggingface",
        "matplotlib",
        "torch",
    }
