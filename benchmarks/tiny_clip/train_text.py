"""Stage 2: a text tower that names the image tower's class vectors; writes the open_clip folder.

`python train_text.py --emoji DIR --image runs/tiny/image.pt --out clipguard/assets/models/tiny`. Captions are templates
around names and kinds; the tower learns to put each caption on the vector that stage 1 found for it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from emoji import Emoji
from safetensors.torch import save_file
from train_image import IMAGE_SIZE, MEAN, MODEL_CONFIG, STD

TEMPLATES = (
    "a drawing of a {}.",
    "an emoji of a {}.",
    "a picture of a {}.",
    "a {}.",
    "a photo of a {}.",
    "a small drawing of a {}",
    "an icon of a {}",
    "{}",
)
CONFIG_EXTRA = {"mean": [MEAN] * 3, "std": [STD] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}


def vocabulary(emoji: Emoji) -> tuple[list[str], list[int]]:
    """Phrases and the row of the target table each names: the kinds first, then the concepts.

    A concept name that is also a kind ("bird") means the kind; a name of several concepts means the first.
    """
    kinds, _ = emoji.kinds
    target = {name: row for row, name in enumerate(kinds)}
    for index in range(len(emoji.concepts)):
        for name in emoji.names(index):
            target.setdefault(name, len(kinds) + index)
    return list(target), list(target.values())


def used_tokens(tokenizer: open_clip.SimpleTokenizer, phrases: list[str]) -> torch.Tensor:
    """(vocabulary,) bool: the tokens that training has seen."""
    used = torch.zeros(MODEL_CONFIG["text_cfg"]["vocab_size"], dtype=torch.bool)
    for template in TEMPLATES:
        used[tokenizer([template.format(p) for p in phrases]).unique()] = True
    return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", type=Path, required=True, help="folder with emoji64.npz and concepts.json")
    parser.add_argument("--image", type=Path, required=True, help="image.pt of stage 1")
    parser.add_argument("--out", type=Path, required=True, help="open_clip folder to write")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    choose = random.Random(args.seed)
    emoji = Emoji.load(args.emoji)
    stage1 = torch.load(args.image, weights_only=True)
    table = F.normalize(torch.cat([stage1["kinds"], stage1["concepts"]]), dim=-1)
    phrases, targets = vocabulary(emoji)
    n_kinds = len(emoji.kinds[0])
    model = open_clip.model.CLIP(**MODEL_CONFIG)
    model.visual.load_state_dict({k.removeprefix("visual."): v for k, v in stage1.items() if k.startswith("visual.")})
    model.logit_scale.data = stage1["log_scale"].clamp(max=math.log(100))
    tokenizer = open_clip.SimpleTokenizer(context_length=MODEL_CONFIG["text_cfg"]["context_length"])
    # Rows of the token table that no caption uses are zero: they carry nothing, and compress to nothing.
    used = used_tokens(tokenizer, phrases)
    model.token_embedding.weight.data[~used] = 0
    trained = [p for n, p in model.named_parameters() if not n.startswith("visual") and n != "logit_scale"]
    optimizer = torch.optim.Adam(trained, lr=args.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps)
    started = time.time()
    for step in range(args.steps):
        # Half of every batch are kinds, which the tasks' class names are.
        rows = [choose.randrange(n_kinds if i % 2 else len(phrases)) for i in range(args.batch_size)]
        captions = [choose.choice(TEMPLATES).format(phrases[r]) for r in rows]
        target = torch.tensor([targets[r] for r in rows])
        text = model.encode_text(tokenizer(captions), normalize=True)
        loss = F.cross_entropy(30 * text @ table.T, target) + 10 * (1 - (text * table[target]).sum(-1)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 250 == 0:
            cosine = (text * table[target]).sum(-1).mean().item()
            print(json.dumps({"step": step + 1, "seconds": round(time.time() - started), "loss": round(loss.item(), 4),
                              "cosine": round(cosine, 4)}), flush=True)  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.half().contiguous() for k, v in model.state_dict().items()}, args.out / "open_clip_model.safetensors"
    )
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": {"size": IMAGE_SIZE, **CONFIG_EXTRA}}
    (args.out / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    main()
