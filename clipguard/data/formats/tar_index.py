"""What a web dataset's tars hold: every member, put together into samples by name, nothing dropped in silence."""

from __future__ import annotations

import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from clipguard.core.errors import DatasetError
from clipguard.core.notices import notice
from clipguard.data.captions import json_caption
from clipguard.data.formats.raw_split import Request
from clipguard.data.formats.suffixes import image_suffixes


@dataclass(frozen=True, slots=True)
class Member:
    """An image, a label or a caption in a tar."""

    tar: int  # index into the tars
    name: str
    offset: int  # bytes
    size: int  # bytes
    is_image: bool
    label: str | None = None
    captions: tuple[str, ...] | None = None  # None: it is no caption

    @property
    def base(self) -> str:
        """The last part of its name."""
        return self.name.rpartition("/")[2]

    @property
    def dotted(self) -> bool:
        """Whether its base has more dots than that of its suffix."""
        return self.base.count(".") > 1

    def key(self, keep_dots: bool) -> str:
        """What its sample is called: its name to the last dot (`keep_dots`), or to the first of its base."""
        folder = self.name[: len(self.name) - len(self.base)]
        return folder + (self.base.rpartition(".")[0] if keep_dots else self.base.partition(".")[0])


@dataclass
class Sample:
    """The images, labels and captions of one key."""

    images: list[Member] = field(default_factory=list)
    labels: list[Member] = field(default_factory=list)
    captions: list[Member] = field(default_factory=list)

    def of_kind(self, member: Member) -> list[Member]:
        """Those of a member's kind."""
        if member.captions is not None:
            return self.captions
        return self.images if member.is_image else self.labels

    def take_out_extras(self) -> list[Member]:
        """Leave `a.png` where `a.seg.png` is beside it, the same for labels; return the rest."""
        extras = []
        for members in (self.images, self.labels, self.captions):
            if any(not member.dotted for member in members):
                extras += [member for member in members if member.dotted]
                members[:] = [member for member in members if not member.dotted]
        return extras


class Row(NamedTuple):
    """What is read of a sample."""

    image: Member
    label: str | None
    captions: tuple[str, ...]


def index_samples(tars: list[Path], where: Path, request: Request) -> list[Row]:
    """The image of each sample, its label and its captions, in the order of the samples' first members.

    Args:
        tars: their paths.
        where: what notices and errors name.
        request: whether labels and captions are wanted, and under which key of JSON.

    Raises:
        DatasetError: for a broken tar, no images, several images or labels in a sample, a label without an image, or
            none but labels in another form.
    """
    rows: list[Row] = []
    others: Counter[str] = Counter()
    dotted: dict[bool, list[str]] = {True: [], False: []}
    for number, path in enumerate(tars):
        members = _read(number, path, others, request)
        keep_dots = _dots_are_in_names(members)
        samples = _group(members, keep_dots)
        if not keep_dots:
            others.update(_extension(extra.base) for sample in samples.values() for extra in sample.take_out_extras())
        if request.labelled:
            _check_labels(samples, path, others)
        for key, sample in samples.items():
            if sample.images:
                image = _only_image(path, key, sample)
                captions = next((m.captions for m in sample.captions if m.captions), ())
                rows.append(Row(image, sample.labels[0].label if sample.labels else None, captions))
                if image.dotted:
                    dotted[keep_dots].append(image.name)
    if not rows:
        content = f"no image that can be read here, but {_listed(others)}; " if others else ""
        raise DatasetError(f"the data set is empty: {content}choose another split, or give one that has images")
    _say(where, dotted, others)
    return rows


def _dots_are_in_names(members: list[Member]) -> bool:
    """Whether names may have dots (`img_7.v1.5.png`): each image has a label of its own name, or there are no labels.

    Else what follows the first dot is the kind of member, as in `7.left.png`.
    """
    if not any(member.dotted for member in members):
        return False
    whole = _group(members, keep_dots=True).values()
    if any(sample.labels or sample.captions for sample in whole):
        return all(sample.labels or sample.captions for sample in whole if sample.images)
    to_first_dot = _group(members, keep_dots=False).values()
    return any(len(s.images) > 1 and all(image.dotted for image in s.images) for s in to_first_dot)


def _group(members: list[Member], keep_dots: bool) -> dict[str, Sample]:
    samples: defaultdict[str, Sample] = defaultdict(Sample)
    for member in members:
        sample = samples[member.key(keep_dots)]
        sample.of_kind(member).append(member)
    return dict(samples)


def _check_labels(samples: dict[str, Sample], tar: Path, others: Counter[str]) -> None:
    """No label without an image, not two in a sample, and not none at all."""
    beside = f"; beside them, {_listed(others)}" if others else ""
    if samples and not any(sample.labels for sample in samples.values()):
        raise DatasetError(
            f"{tar}: no image has a .cls member{beside}; store the class number or name of x.jpg as x.cls, or unpack "
            "the images into class folders"
        )
    alone = [sample.labels[0].name for sample in samples.values() if not sample.images]
    if alone:
        raise DatasetError(
            f"{tar}: {alone[0]} is the label of no image that can be read here ({len(alone):,} of {len(samples):,} "
            f"labels{beside}); add the images as .png or .jpg, or remove their labels"
        )
    for key, sample in samples.items():
        if len({member.label for member in sample.labels}) > 1:
            names = ", ".join(member.name for member in sample.labels)
            raise DatasetError(f"{tar}: sample {key!r} has several labels ({names}); keep one a sample")


def _only_image(tar: Path, key: str, sample: Sample) -> Member:
    if len(sample.images) > 1:
        names = ", ".join(image.name for image in sample.images)
        raise DatasetError(f"{tar}: sample {key!r} has several images ({names}); keep one a sample")
    return sample.images[0]


def _say(where: Path, dotted: dict[bool, list[str]], others: Counter[str]) -> None:
    """Notices: of names with dots, by whether they were kept, and of members of other kinds."""
    if dotted[True]:
        notice("guessed", f"{where}: the dots in names such as {dotted[True][0]} belong to the sample's name")
    if dotted[False]:
        what = f"{len(dotted[False]):,} images are taken for their sample's, being alone in it: {dotted[False][0]}"
        notice("guessed", f"{where}: {what}")
    if others:
        notice("skipped", f"{where}: members that are not a sample's image or .cls are not read: {_listed(others)}")


def _listed(others: Counter[str]) -> str:
    return ", ".join(f"{count:,} {extension}" for extension, count in others.most_common(6))


def _extension(base: str) -> str:
    return f".{base.partition('.')[2].lower()}" if "." in base else "without suffix"


def _read(number: int, path: Path, others: Counter[str], request: Request) -> list[Member]:
    """All images, labels and, if they are wanted, captions; members of each other kind are counted in `others`."""
    suffixes = image_suffixes()
    members: list[Member] = []
    for member, content in _members(path, _texts_wanted(request)):
        base = member.name.rpartition("/")[2]
        if base.startswith("."):
            continue
        suffix = f".{base.rpartition('.')[2].lower()}" if "." in base else ""
        if content is not None and suffix != ".cls":
            captions = _read_captions(path, member.name, content, request.caption_column)
            members.append(Member(number, member.name, 0, 0, False, captions=captions))
        elif content is not None:
            label = _read_label(path, member.name, content)
            members.append(Member(number, member.name, 0, 0, False, label))
        elif member.isfile() and suffix in suffixes:
            members.append(Member(number, member.name, member.offset_data, member.size, True))
        else:
            others[_extension(base) if member.isfile() else "links"] += 1
    return members


def _read_label(path: Path, name: str, content: bytes) -> str | None:
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        text = "\n"
    if any(ord(character) < 32 for character in text) or text.startswith(("{", "[")):
        raise DatasetError(f"{path}: {name} holds {content[:40]!r}; write only the class number or name, as UTF-8 text")
    return text or None


def _texts_wanted(request: Request) -> tuple[str, ...]:
    """Suffixes of members whose content is read; with a key, captions are in the JSON."""
    captions = (".json",) if request.caption_column else (".txt", ".json")
    return (".cls", *captions) if request.captioned else (".cls",)


def _read_captions(path: Path, name: str, content: bytes, key: str | None) -> tuple[str, ...]:
    if name.lower().endswith(".json"):
        return json_caption(content, key, f"{path}: {name}")
    try:
        text = " ".join(content.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: {name} is not UTF-8 text; write it anew, or remove the image") from error
    return (text,) if text else ()


def _members(path: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Every member but folders, with its content if it has one of these suffixes.

    Raises:
        DatasetError: if the tar is cut short.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile() and member.name.lower().endswith(suffixes):
                    file = tar.extractfile(member)
                    yield member, file.read() if file else b""
                elif not member.isdir():
                    yield member, None
            end = tar.offset
        with path.open("rb") as raw:
            raw.seek(end)
            if raw.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a broken header for the end of the archive
                raise tarfile.ReadError(f"broken header at byte {end}")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DatasetError(
            f"cannot read {path}: {error}; it is corrupt, cut short or compressed: download it again, or decompress it"
        ) from error
