"""What a command left, as text that is the same in every run: sections of a record.

Times, folders, versions and the machine are replaced; keys, names, order and numbers stay.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq

MARK = "=== "
VOLATILE = {
    "started",
    "wall_seconds",
    "training_seconds",
    "seconds",
    "from",
    "to",
    "written",
    "bytes",
    "platform",
    "images_per_second",
}
LONG_TEXT = 10_000  # characters; longer texts, and pages of help, are given by their hash
MANY_ROWS = 20  # of a table; more are given by their hash
REPEATED = 120  # characters; longer values and lines of the log that were recorded before are given by their hash
FEW = 12  # tensors that are listed one by one
SHORT = 300  # characters; JSON values of so many stand on one line


@dataclass(frozen=True)
class Section:
    """A part of a record: a stream or a file.

    kind: json, parquet, tensors, or text.
    """

    title: str
    kind: str
    lines: tuple[str, ...]

    def text(self) -> str:
        """As it stands in a record."""
        return "\n".join([f"{MARK}{self.title} [{self.kind}]", *self.lines, ""])

    def flat(self) -> list[str]:
        """Lines that say where they belong: of JSON, a line a value with all its keys."""
        return flatten(json.loads("\n".join(self.lines))) if self.kind == "json" else list(self.lines)

    def shape(self) -> list[str]:
        """What other versions of libraries leave as it is: no numbers, hashes or words."""
        if "/_key.json" in self.title:  # of a cell of a store: all but the hash of the text's numbers
            return [line for line in self.flat() if not line.startswith("text = ")]
        if self.kind == "json":
            keys = (re.sub(r"\[\d+\].*", "[]", line.partition(" = ")[0]) for line in self.flat())
            return sorted({".".join(key.split(".")[:2]) for key in keys})
        if self.kind == "parquet":
            return [line for line in self.lines if not line.startswith("[")]
        return [line.rpartition(" ")[0] for line in self.lines] if self.kind == "tensors" else []

    def place(self) -> str:
        """The title for other versions of libraries: where images of other classes fall, names of files differ."""
        return re.sub(r"(png/).*", r"\1...", mask_hashes(self.title))


def parse(record: str) -> list[Section]:
    """The sections of a record."""
    sections: list[Section] = []
    for line in record.rstrip("\n").split("\n"):
        if line.startswith(MARK):
            title, _, kind = line.removeprefix(MARK).removesuffix("]").rpartition(" [")
            sections.append(Section(title, kind, ()))
        else:
            last = sections.pop()
            sections.append(Section(last.title, last.kind, (*last.lines, line)))
    return sections


def flatten(value: Any, path: str = "") -> list[str]:
    """A line a leaf: `run.models.tiny.sha256 = "a4a7"`."""
    if isinstance(value, dict) and value:
        return [line for key, item in value.items() for line in flatten(item, f"{path}.{key}" if path else key)]
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [line for number, item in enumerate(value) for line in flatten(item, f"{path}[{number}]")]
    return [f"{path} = {json.dumps(value, ensure_ascii=False)}"]


def mask_hashes(text: str) -> str:
    """Without SHA-256 sums."""
    return re.sub(r"\b[0-9a-f]{64}\b", "<sha256>", text)


def sha(content: bytes) -> str:
    """In hexadecimal, short enough to read."""
    return hashlib.sha256(content).hexdigest()[:16]


class Canonical:
    """Texts and files of a run in `folder`, made canonical.

    code: the folder that holds the package.
    """

    def __init__(self, folder: Path, code: Path) -> None:
        self._seen: set[str] = set()
        self._places = {str(folder): "<folder>", str(code): "<code>"}
        # Of three numbers: no accuracy looks like one. The longest first: one may be the start of another.
        found = {platform.python_version(), *(d.version for d in distributions() if d.version.count(".") > 1)}
        words = "|".join(map(re.escape, sorted(found, key=len, reverse=True)))
        self._versions = re.compile(rf"(?<![\w.])(?:{words})(?![\w.]*\w)")

    def text(self, text: str) -> str:
        """Without folders, times and the machine."""
        for place, name in self._places.items():
            text = text.replace(place, name)
        text = text.replace(platform.platform(), "<platform>")
        text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?(\+00:00|Z| UTC)?", "<time>", text)
        text = re.sub(r"\b\d{8}-\d{6}\b", "<stamp>", text)
        text = re.sub(r"\b20\d\d-\d\d-\d\d\b", "<date>", text)
        text = re.sub(r"\b(in|took|Trained in) [\d.,]+ (s|min|seconds)\b", r"\1 <seconds> \2", text)
        text = re.sub(r"([0-9a-f]{64}[/-])[0-9a-f]{64}(?=\.parquet)", r"\1<segment>", text)  # hashes of times, too
        text = re.sub(r"\b\d+(\.\d+)? (kB|MB)\b", r"<size> \2", text)
        text = re.sub(r"(wall seconds(?: \| |</dt>\s*<dd>))[\d.]+", r"\1<seconds>", text)
        return self._versions.sub("<version>", text)

    def value(self, value: Any, key: str = "") -> Any:
        """A JSON value without what changes from run to run; keys and their order stay."""
        if key in VOLATILE:
            return f"<{key}>"
        if key == "versions" and isinstance(value, dict):
            return dict.fromkeys(value, "<version>")
        if isinstance(value, dict):
            return {self.text(name): self.value(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [self.value(item) for item in value]
        return self.text(value) if isinstance(value, str) else value

    def stream(self, title: str, text: str, changed: dict[str, Path]) -> Section:
        """What was printed; of JSON that is a file's content, too, which file. changed: the files that were written."""
        if not text.startswith(("{", "[")):
            return Section(title, "text", self._words(text))
        same = [name for name, path in changed.items() if path.read_bytes() == text.encode()]
        return Section(title, "text", (f"as {self.text(same[0])}",)) if same else self.json(title, text)

    def log(self, lines: Iterable[str]) -> Section:
        """What was logged."""
        found = []
        for line in map(self.text, lines):
            found.append(f"{line[:40]} <as before {sha(line.encode())[:8]}>" if line in self._seen else line)
            if len(line) >= REPEATED:
                self._seen.add(line)
        return Section("stderr", "text", tuple(found))

    def json(self, title: str, text: str) -> Section:
        """A JSON document, laid out for reading; the title says how it was laid out."""
        try:
            value = json.loads(text)
        except ValueError:
            return Section(title, "text", self._words(text))
        if len(text) > 6 * LONG_TEXT:
            return Section(title, "text", (f"{len(value)} values {sha(text.encode())}",))
        lines = pretty(self._once(self.value(value))).split("\n")
        return Section(f"{title}: {layout(value, text)}", "json", tuple(lines))

    def _once(self, value: Any, depth: int = 0) -> Any:
        """A JSON value whose longer parts are hashes where they were recorded before."""
        if not isinstance(value, dict | list):
            return value
        line = json.dumps(value)
        if depth and line in self._seen:
            return f"<as before {sha(line.encode())[:8]}>"
        if depth and len(line) >= REPEATED:
            self._seen.add(line)
        if isinstance(value, dict):
            return {name: self._once(item, depth + 1) for name, item in value.items()}
        return [self._once(item, depth + 1) for item in value]

    def _words(self, text: str) -> tuple[str, ...]:
        text = self.text(text)
        told = f"{len(text.splitlines())} lines {sha(text.encode())}"
        if len(text) > LONG_TEXT or "╭─ Options ─" in text:
            return (told,)
        end = () if text.endswith("\n") or not text else ("<no newline at the end>",)
        return *(f" {line}" if line.startswith(MARK) else line for line in text.splitlines()), *end

    def file(self, name: str, path: Path) -> Section:
        """A file by its kind."""
        content = path.read_bytes()
        name = self.text(name)
        if path.suffix == ".json":
            made = self.json(name, content.decode())
            if path.parent.name != "probes":
                return made
            # Of its own content, in which there are seconds.
            hidden = (re.sub(r'("sha256": ")[0-9a-f]{64}', r"\1<sha256>", line) for line in made.lines)
            return Section(made.title, made.kind, tuple(hidden))
        if path.suffix == ".jsonl":
            rows = [self.value(json.loads(line)) for line in content.decode().splitlines()]
            return Section(name, "text", tuple(json.dumps(row) for row in rows))
        kinds: dict[str, Callable[[bytes], tuple[str, ...]]] = {
            ".parquet": parquet_lines,
            ".safetensors": tensor_lines,
            ".pt": torch_lines,
            ".png": image_lines,
            ".html": self._page,
        }
        if path.name == "store.parquet":
            return Section(name, "parquet", parquet_lines(content, in_order=False))
        kind = {".parquet": "parquet", ".safetensors": "tensors", ".pt": "tensors"}.get(path.suffix, "text")
        if path.suffix in kinds:
            return Section(name, kind, kinds[path.suffix](content))
        try:
            text = content.decode()
        except UnicodeDecodeError:
            return Section(name, "text", (f"{len(content)} bytes {sha(content)}",))
        if path.name == "store.csv":  # rows of a cell follow the names of segments, which are hashes of times
            first, *rows = text.splitlines()
            text = "\n".join([first, *sorted(rows)])
        if path.suffix in (".csv", ".svg", ".pdf") or name.endswith("results.md"):
            return Section(name, "text", (f"{len(text.splitlines())} lines {sha(self.text(text).encode())}",))
        return Section(name, "text", self._words(text))

    def _page(self, content: bytes) -> tuple[str, ...]:
        """An HTML page: long parts as hashes, the rest as it is, a tag or text a line."""
        page = self.text(content.decode())

        def picture(found: re.Match[str]) -> str:
            return "data:image " + " ".join(image_lines(base64.b64decode(found[1])))

        passes = r'(<td class="num">[\d,]+</td>\s*){2}<td class="num">'  # and then seconds
        page = re.sub(rf"({passes})[\d.,]+", r"\1<seconds>", page)
        page = re.sub(r"data:image/png;base64,([A-Za-z0-9+/=]+)", picture, page)
        page = re.sub(r"<(svg|script|style)\b.*?</\1>", lambda m: f"<{m[1]} {sha(m[0].encode())}>", page, flags=re.S)
        return tuple(line.strip() for line in re.sub(r">\s*<", ">\n<", page).splitlines() if line.strip())


def layout(value: Any, text: str) -> str:
    """How a JSON text is laid out."""
    for indent in (None, 1, 2):
        for name, separators in (("", None), (" compact", (",", ":"))):
            for order in ("", " sorted"):
                for escape in ("", " unescaped"):
                    made = json.dumps(
                        value, indent=indent, separators=separators, sort_keys=bool(order), ensure_ascii=not escape
                    )
                    if made == text.removesuffix("\n"):
                        return f"indent {indent}{name}{order}{escape}{'' if text.endswith(chr(10)) else ', no newline'}"
    return "laid out in another way"


def pretty(value: Any, indent: str = "") -> str:
    """JSON with a line a value, and what is short, or a list of plain values, on one line."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) < SHORT and indent:
        return line
    if isinstance(value, dict) and value:
        rows = [f"{indent} {json.dumps(k, ensure_ascii=False)}: {pretty(v, indent + ' ')}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        rows = [f"{indent} {pretty(item, indent + ' ')}" for item in value]
        return "[\n" + ",\n".join(rows) + f"\n{indent}]"
    return line


def parquet_lines(content: bytes, *, in_order: bool = True) -> tuple[str, ...]:
    """Columns with types, the keys of the metadata, and a line a row; sorted, if their order means nothing."""
    try:
        table = pq.read_table(io.BytesIO(content))
    except (OSError, ValueError):
        return ("no parquet file",)
    keys = sorted(key.decode() for key in table.schema.metadata or {})
    columns = ", ".join(f"{field.name} {field.type}" for field in table.schema)
    rows = table.to_pylist()
    if not in_order:
        rows.sort(key=repr)
    return f"columns: {columns}", f"metadata: {', '.join(keys)}", *row_lines(rows)


def row_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """What all rows have in common, the columns that are left, and their values, a line a row."""
    names = list(rows[0]) if rows else []
    common = {name: rows[0][name] for name in names if len(rows) > 1 and all(r[name] == rows[0][name] for r in rows)}
    yield f"[in all {len(rows)} rows] {json.dumps(common, ensure_ascii=False, default=str)}"
    left = [name for name in names if name not in common]
    yield f"[in a row] {', '.join(left)}"
    lines = [json.dumps([row[name] for name in left], ensure_ascii=False, default=str) for row in rows]
    yield from lines if len(lines) <= MANY_ROWS else [f"[{len(lines)} rows] {sha(chr(10).join(lines).encode())}"]


def tensor_lines(content: bytes) -> tuple[str, ...]:
    """The tensors of a safetensors file: name, type, shape, hash."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = header.pop("__metadata__", None)
    found = []
    for name, entry in header.items():
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        found.append((f"{name} {entry['dtype']}{entry['shape']}", sha(content[start:end])))
    return f"metadata: {json.dumps(metadata)} .", *grouped(found)


def grouped(found: list[tuple[str, str]]) -> Iterator[str]:
    """A line a tensor; of many, a line for all whose names start alike. `found`: descriptions and hashes, in order."""
    if len(found) <= FEW:
        yield from (" ".join(pair) for pair in found)
        return
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, content in found:
        groups.setdefault(".".join(name.split(" ")[0].split(".")[:4]), []).append((name, content))
    for start, pairs in groups.items():
        names, contents = ("\n".join(part).encode() for part in zip(*pairs, strict=True))
        yield f"{start}: {len(pairs)} tensors, names {sha(names)}, values {sha(contents)}"


def torch_lines(content: bytes) -> tuple[str, ...]:
    """The values of a file of torch: name, and type, shape and hash of a tensor, or value."""
    import torch

    def visit(value: Any, name: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, torch.Tensor):
            data = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            yield f"{name} {value.dtype}{list(value.shape)}", sha(data)
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from visit(item, f"{name}.{key}")
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                yield from visit(item, f"{name}[{number}]")
        else:
            yield name, repr(value)

    return tuple(grouped(list(visit(torch.load(io.BytesIO(content), weights_only=True), "file"))))


def image_lines(content: bytes) -> tuple[str, ...]:
    """Mode, size and pixels of an image, and what is written beside them."""
    image = PIL.Image.open(io.BytesIO(content))
    pixels = np.asarray(image).tobytes()
    return (f"{image.format} {image.mode} {image.width}x{image.height} {sorted(image.info)} {sha(pixels)}",)


def cell_section(title: str, paths: list[Path]) -> Section:
    """Segments of one cell of a store as one, since which rows share a file depends on time."""
    tables = [pq.read_table(path) for path in paths]
    columns = ", ".join(f"{field.name} {field.type}" for field in tables[0].schema)
    written = [entry for table in tables for entry in json.loads(table.schema.metadata[b"clipguard"])]
    counts: dict[str, int] = {"rows": sum(entry["rows"] for entry in written)}
    for entry in written:
        for stage, cost in entry["stages"].items():
            for what in cost.keys() - {"seconds"}:
                counts[f"{stage} {what}"] = counts.get(f"{stage} {what}", 0) + int(cost[what])
    rows = [row for table in tables for row in table.to_pylist()]
    rows.sort(key=lambda row: (row["index"], row["image"], row["label"], row["eps"]))
    keys = ", ".join(sorted({key for entry in written for key in entry}))
    lines = f"columns: {columns}", f"wrote: {keys}", f"[counts] {json.dumps(counts, sort_keys=True)}"
    return Section(title, "parquet", (*lines, *row_lines(rows)))
