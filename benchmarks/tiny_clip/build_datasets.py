"""Write the embedded zero-shot tasks: `python build_datasets.py --emoji DIR --out clipguard/assets/datasets`.

Each set becomes `<out>/<name>/{train,test}.parquet` in the layout of the `datasets` library: `image` (PNG),
`label` (ClassLabel), `concept` and `style`. The test split holds the two styles that no training ever sees.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image, Value
from emoji import TEST_STYLES, TRAIN_STYLES, VALIDATION_STYLES, Emoji
from PIL import Image as PILImage

SPLITS = {"train": TRAIN_STYLES + VALIDATION_STYLES, "test": TEST_STYLES}


def png_on_white(rgba) -> bytes:
    drawing = PILImage.fromarray(rgba, "RGBA")
    canvas = PILImage.new("RGBA", drawing.size, "white")
    canvas.alpha_composite(drawing)
    buffer = io.BytesIO()
    canvas.convert("RGB").save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def split_rows(emoji: Emoji, classes: dict[str, list[int]], styles: tuple[str, ...]) -> dict[str, list]:
    """Rows of one split; of drawings that are the same to the byte (some styles reuse one) only the first."""
    rows: dict[str, list] = {"image": [], "label": [], "concept": [], "style": []}
    seen: set[bytes] = set()
    for style in styles:
        drawn = set(emoji.drawn(style))
        for label, members in enumerate(classes.values()):
            for index in sorted(drawn.intersection(members)):
                png = png_on_white(emoji.rgba[style][index])
                if png in seen:
                    continue
                seen.add(png)
                rows["image"].append({"bytes": png, "path": None})
                rows["label"].append(label)
                rows["concept"].append(emoji.names(index)[0])
                rows["style"].append(style)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", type=Path, required=True, help="folder with emoji64.npz and concepts.json")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the data sets to")
    args = parser.parse_args()
    emoji = Emoji.load(args.emoji)
    for name, classes in emoji.tasks.items():
        features = Features(
            image=Image(), label=ClassLabel(names=list(classes)), concept=Value("string"), style=Value("string")
        )
        for split, styles in SPLITS.items():
            path = args.out / name / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = split_rows(emoji, classes, styles)
            Dataset.from_dict(rows, features=features).to_parquet(path)
            print(f"{name} {split}: {len(rows['label'])} images, {len(classes)} classes, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
