"""A model's spec (what the user typed) taken apart and checked against what open_clip knows.

Nothing here touches the network or reads a weight file, so every spelling mistake is reported at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from clipguard.core.errors import ModelError, did_you_mean
from clipguard.models.adapters.config import is_adapter
from clipguard.models.checkpoint.shards import is_distributed
from clipguard.models.normalization import Normalization, parse_normalization
from clipguard.models.sources.open_clip_catalog import (
    activation_agrees,
    architectures,
    quick_gelu_twin,
    tag_config,
    tags,
    uses_quick_gelu,
)
from clipguard.models.sources.published import find_published, published_models

TINY = "tiny"
HUB_PREFIX = "hf-hub:"
DIR_PREFIX = "local-dir:"
WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".tar", ".ckpt", ".index.json")
OPTIONS = ("normalization", "entry")
FORMS = (
    "use tiny, ARCH:TAG, path/to/weights.pt, ARCH:path/to/weights.pt, hf-hub:org/repo, local-dir:path or a name of"
    " `clipguard list models`"
)


@dataclass(frozen=True)
class ModelSource:
    """A model as the user named it: which of the six forms, and the parts of the name."""

    spec: str
    kind: Literal["tiny", "hub", "dir", "tag", "file", "adapter"]
    name: str  # the architecture for "tag" and "file" ("" where the file has to tell), else the repository or folder
    weights: str = ""  # the tag; the path of a "file" or "adapter", or its place on the hub, with hf-hub:
    base: ModelSource | None = (
        None  # whose text tower goes with the image tower in a file, or what an adapter is merged into
    )
    normalization: Normalization | None = None  # instead of the model's own
    entry: str = ""  # which of several state dicts in a file


def parse_source(spec: str) -> ModelSource:
    """Take a model's spec, `MODEL[@BASE][#normalization=...][#entry=...]`, apart and check every name in it.

    No network is used, and no weights are read.

    Raises:
        ModelError: for an unknown form, architecture, tag or option, a path that does not exist, or a tag whose weights
            were trained with another activation (GELU, QuickGELU) than the architecture's.
    """
    spec = spec.strip()
    model, base, options = split_spec(spec)
    published = find_published(model)
    if published is not None:
        model, own_base, _ = split_spec(published.spec())
        base = base or own_base
    source = _parse_model(model)
    if base and source.kind in ("hub", "dir"):
        source = _parse_adapter(source, model)
    if base and source.kind not in ("file", "adapter"):
        raise ModelError(
            f"{spec}: only a weight file or an adapter takes a base model after @; {model} is a whole model."
        )
    if options.get("entry") and source.kind != "file":
        raise ModelError(f"{spec}: #entry= is for weight files.")
    normalization = options.get("normalization") or (published.normalization if published else "")
    return replace(
        source,
        spec=spec,
        base=parse_source(base) if base else None,
        normalization=parse_normalization(normalization) if normalization else None,
        entry=options.get("entry", ""),
    )


def split_spec(spec: str) -> tuple[str, str, dict[str, str]]:
    """Model, base and options of `MODEL[@BASE][#option=value]...`; the name of what exists may have @ and # in it.

    Raises:
        ModelError: for an option that does not exist or is given twice.
    """
    if _is_there(spec):
        return spec, "", {}
    match = re.fullmatch(r"(.*?)((?:#[a-z]+=[^#]*)*)", spec, re.DOTALL)
    assert match is not None  # it matches anything
    rest, parts = match[1], match[2]
    options: dict[str, str] = {}
    for part in parts.split("#")[1:]:
        key, _, value = part.partition("=")
        if key not in OPTIONS or not value or key in options:
            raise ModelError(f"Cannot read #{part} in {spec!r}: write {' or '.join(f'#{o}=VALUE' for o in OPTIONS)}.")
        options[key] = value
    if _is_there(rest) or "@" not in rest:
        return rest, "", options
    model, _, base = rest.rpartition("@")
    if not model or not base:
        raise ModelError(f"{spec!r} is incomplete: write FILE@BASE, as in tuned.pt@ViT-B-32-quickgelu:openai.")
    return model, base, options


def _is_there(text: str) -> bool:
    """Whether all of it names a file or folder, alone or after an architecture or local-dir:."""
    architecture, _, path = text.partition(":")
    return any(part and Path(part).expanduser().exists() for part in (text, "" if "@" in architecture else path))


def _parse_model(spec: str) -> ModelSource:
    if spec == TINY:
        return ModelSource(spec, "tiny", TINY)
    if spec.startswith((HUB_PREFIX, DIR_PREFIX)):
        return _parse_prefixed(spec)
    path = Path(spec).expanduser()
    if path.is_file() or is_distributed(path) or (":" not in spec and spec.endswith(WEIGHT_SUFFIXES)):
        return ModelSource(spec, "file", "", str(_check_file(spec)))
    if is_adapter(path):
        return ModelSource(spec, "adapter", str(path), str(path))
    name, colon, weights = spec.partition(":")
    if not colon or not name or not weights:
        raise ModelError(_explain_incomplete(spec, name))
    architecture = _check_architecture(name)
    if tag_config(architecture, weights):
        _check_tag_activation(architecture, weights)
        return ModelSource(spec, "tag", architecture, weights)
    if weights.startswith(HUB_PREFIX):
        return ModelSource(spec, "file", architecture, _check_hub_file(weights))
    if _looks_like_path(weights):
        return ModelSource(spec, "file", architecture, str(_check_file(weights)))
    raise ModelError(_explain_unknown_tag(architecture, weights))


def _parse_prefixed(spec: str) -> ModelSource:
    """`hf-hub:ORG/REPO`, `hf-hub:ORG/REPO/FILE` and `local-dir:FOLDER`."""
    if spec.startswith(HUB_PREFIX):
        if spec.count("/") > 1:
            return ModelSource(spec, "file", "", _check_hub_file(spec))
        return ModelSource(spec, "hub", _check_repository(spec.removeprefix(HUB_PREFIX)))
    folder = _check_folder(spec.removeprefix(DIR_PREFIX))
    source = ModelSource(spec, "dir", str(folder))
    return _parse_adapter(source, spec) if _is_adapter_alone(folder) else source


def add_to_files(specs: list[str], base: str | None, normalization: str | None) -> list[str]:
    """Specs with `base` added to weight files and `normalization` to all, but where they have one.

    Raises:
        ModelError: when the base goes with none of them.
    """
    added, files = [], 0
    for spec in specs:
        model, named_base, options = split_spec(spec)
        is_file = find_published(model) is None and _parse_model(model).kind in ("file", "adapter")
        takes_base = bool(base) and not named_base and is_file
        files += takes_base
        rest = spec.removeprefix(model)
        with_base = f"{model}@{base}{rest}" if takes_base else spec
        add = normalization and "normalization" not in options
        added.append(f"{with_base}#normalization={normalization}" if add else with_base)
    if base and not files:
        raise ModelError(f"`base` {base} goes with weight files, and `model` names none without a base.")
    return added


def list_models() -> list[str]:
    """Every name that can be given as it stands: `tiny` and open_clip's `ARCH:TAG` pairs, in open_clip's order.

    Pairs whose weights need another activation than the architecture has (`ViT-B-32:openai`) are left out: loading
    refuses them, and the same weights are listed under the `-quickgelu` architecture.
    """
    import open_clip

    pairs: list[tuple[str, str]] = open_clip.list_pretrained()
    return [TINY, *(f"{arch}:{tag}" for arch, tag in pairs if activation_agrees(arch, tag))]


def _check_tag_activation(architecture: str, tag: str) -> None:
    if activation_agrees(architecture, tag):
        return
    trained, built = ("GELU", "QuickGELU") if uses_quick_gelu(architecture) else ("QuickGELU", "GELU")
    raise ModelError(
        f"The weights {architecture}:{tag} were trained with {trained} (open_clip's list of weights says so), but"
        f" {architecture} uses {built}: use {quick_gelu_twin(architecture)}:{tag}."
    )


def _check_architecture(name: str) -> str:
    known = architectures()
    architecture = name.replace("/", "-")  # open_clip's own spelling rule: ViT-B/32 is ViT-B-32
    if architecture not in known:
        names = [*known, TINY, HUB_PREFIX.rstrip(":"), DIR_PREFIX.rstrip(":")]
        raise ModelError(
            f"Unknown model architecture {name!r}.{did_you_mean(architecture, names)}"
            " `clipguard list models` prints the known ones."
        )
    return architecture


def _check_repository(repository: str) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ModelError(f"{HUB_PREFIX}{repository} is not a hub name: write {HUB_PREFIX}organisation/repository.")
    return repository


def _check_hub_file(text: str) -> str:
    """`hf-hub:ORG/REPO/FILE`, where FILE may be in folders."""
    parts = text.removeprefix(HUB_PREFIX).split("/")
    named = len(parts) > 2 and all(re.fullmatch(r"[\w.+-]+", part) and part.strip(".") for part in parts)
    if not named or not text.endswith(WEIGHT_SUFFIXES):
        raise ModelError(
            f"{text} is no weight file of a hub repository: write {HUB_PREFIX}organisation/repository/file.pt (or"
            f" {', '.join(WEIGHT_SUFFIXES[1:])}), or {HUB_PREFIX}organisation/repository for a whole model."
        )
    return text


def _parse_adapter(source: ModelSource, model: str) -> ModelSource:
    """The same as an adapter, if it can be one: with a base, a repository is, and a folder with an adapter's config."""
    if source.kind == "hub":
        return replace(source, kind="adapter", weights=model)
    return replace(source, kind="adapter", weights=source.name) if is_adapter(Path(source.name)) else source


def _is_adapter_alone(folder: Path) -> bool:
    """Whether an adapter is all that is in a folder."""
    return is_adapter(folder) and not any(
        (folder / name).is_file() for name in ("config.json", "open_clip_config.json")
    )


def _check_folder(text: str) -> Path:
    path = Path(text).expanduser()
    if not text:
        raise ModelError(f"{DIR_PREFIX} names no folder: write {DIR_PREFIX}path/to/folder.")
    if path.is_file():
        raise ModelError(f"{DIR_PREFIX}{text} is a file: give its folder, or ARCH:{text} for a weight file.")
    if not path.is_dir():
        raise ModelError(f"No folder {text}: check the path after {DIR_PREFIX}.")
    return path


def _looks_like_path(text: str) -> bool:
    path = Path(text).expanduser()
    return path.exists() or text.endswith(WEIGHT_SUFFIXES) or "/" in text or "\\" in text or text[0] in ".~"


def _check_file(text: str) -> Path:
    path = Path(text).expanduser()
    if is_distributed(path):
        return path
    if path.is_dir():
        raise ModelError(f"{text} is a folder: give {DIR_PREFIX}{text}, or the weight file inside it.")
    if not path.is_file():
        raise ModelError(f"No weight file {text}: check the path.")
    return path


def _explain_incomplete(spec: str, name: str) -> str:
    """The message for a value that is not of any form: what it most resembles, and how to write that."""
    path = Path(spec).expanduser()
    if not spec:
        return f"No model is named: {FORMS}."
    if path.is_dir():
        return f"{spec} is a folder: write {DIR_PREFIX}{spec}."
    architecture = name.replace("/", "-")
    if architecture in architectures():
        forms = f"{name}:TAG or {name}:path/to/weights.pt"
        return f"{name} names an architecture without weights: write {forms}.{_list_tags(architecture)}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
        return f"Unknown model {spec!r}: write {HUB_PREFIX}{spec} for the hub, {DIR_PREFIX}{spec} for a folder."
    known = [TINY, *(entry.name for entry in published_models()), *architectures()]
    return f"Unknown model {spec!r}.{did_you_mean(spec, known)} For `model`, {FORMS}."


def _list_tags(architecture: str) -> str:
    """`" Tags of ViT-B-32: ... Tags of ViT-B-32-quickgelu: ..."`, for those that have any."""
    known = {name: tags(name) for name in (architecture, quick_gelu_twin(architecture)) if name}
    listed = "".join(f" Tags of {name}: {', '.join(named)}." for name, named in known.items() if named)
    return listed or f" It has no tags: give {architecture}:path/to/weights.pt."


def _explain_unknown_tag(architecture: str, tag: str) -> str:
    """The message for an unknown tag: the twin that has it, near spellings, and all tags of the architecture."""
    twin, known = quick_gelu_twin(architecture), tags(architecture)
    if twin and tag_config(twin, tag) and activation_agrees(twin, tag):
        trained = "QuickGELU" if uses_quick_gelu(twin) else "GELU"
        return f"The weights {tag!r} were trained with {trained} (open_clip's list says so): use {twin}:{tag}."
    others = tags(twin) if twin else []
    near = did_you_mean(tag, [*known, *others])
    return f"{architecture} has no weights tagged {tag!r}, and no such file exists.{near}{_list_tags(architecture)}"
