"""Stage 1: the image tower, trained with one free vector a concept and one a kind in place of a text tower.

`python train_image.py --emoji DIR --teacher DIR --out runs/tiny` writes `image.pt`, `log.jsonl` and, on the way,
`snapshot.pt`. A learned table of class vectors sees every class in every step, which a text tower could not
afford; `train_text.py` then teaches the text tower to name those vectors.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from augment import blur_or_noise, colour_jitter, random_view
from emoji import TEST_STYLES, TRAIN_STYLES, VALIDATION_STYLES, Emoji, on_background, premultiplied
from torch import nn

IMAGE_SIZE = 48
MODEL_CONFIG = {
    "embed_dim": 96,
    "vision_cfg": {
        "timm_model_name": "convnext_zepto_rms",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "timm_proj_bias": False,
        "image_size": IMAGE_SIZE,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 96, "heads": 4, "layers": 3},
}
MEAN = STD = 0.5
POOL_VIEWS = 12  # fixed views of each drawing whose teacher features are computed once
TEACHER_SIZE = 96


class ImageStage(nn.Module):
    """Image tower, vectors of the concepts and the kinds, and a linear map to the teacher's features."""

    def __init__(self, n_concepts: int, n_kinds: int, teacher_dim: int) -> None:
        super().__init__()
        self.visual = open_clip.model.CLIP(**MODEL_CONFIG).visual.to(memory_format=torch.channels_last)
        dim = MODEL_CONFIG["embed_dim"]
        self.concepts = nn.Parameter(torch.randn(n_concepts, dim) * dim**-0.5)
        self.kinds = nn.Parameter(torch.randn(n_kinds, dim) * dim**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(math.log(15.0)))
        self.to_teacher = nn.Linear(dim, teacher_dim)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, 48, 48) in [0,1] -> (B, 96), not normalised."""
        return self.visual(((x - MEAN) / STD).contiguous(memory_format=torch.channels_last))

    def losses(self, x, concept, kind, teacher=None) -> dict[str, torch.Tensor]:
        features = self.embed(x)
        z = F.normalize(features, dim=-1) * self.log_scale.exp().clamp(max=100)
        out = {
            "concept": F.cross_entropy(z @ F.normalize(self.concepts, dim=-1).T, concept, label_smoothing=0.1),
            "kind": F.cross_entropy(z @ F.normalize(self.kinds, dim=-1).T, kind, label_smoothing=0.05),
        }
        if teacher is not None:
            guess = self.to_teacher(features[: len(teacher)])
            out["teacher"] = (1 - F.cosine_similarity(guess, teacher, dim=-1)).mean()
        return out


def drawings(emoji: Emoji, styles: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """All drawings of these styles, premultiplied, and their concept indices."""
    found = [(premultiplied(emoji.rgba[s][emoji.drawn(s)]), emoji.drawn(s)) for s in styles]
    return torch.cat([x for x, _ in found]), torch.from_numpy(np.concatenate([i for _, i in found]))


@torch.no_grad()
def teacher_pool(rgba: torch.Tensor, teacher: nn.Module, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """POOL_VIEWS uint8 views of every drawing (V, N, 3, 48, 48) and the teacher's features of them (V, N, D)."""
    views, features = [], []
    started = time.time()
    for view in range(POOL_VIEWS):
        batches = [random_view(chunk, IMAGE_SIZE, g) for chunk in rgba.split(256)]
        upscaled = (F.interpolate(b, size=TEACHER_SIZE, mode="bicubic").clamp(0, 1) for b in batches)
        features.append(torch.cat([teacher((b - MEAN) / STD) for b in upscaled]))
        views.append(torch.cat([(b * 255).round().byte() for b in batches]))
        print(f"teacher view {view + 1}/{POOL_VIEWS}, {time.time() - started:.0f} s", flush=True)
    return torch.stack(views), torch.stack(features)


@torch.no_grad()
def kind_accuracy(model: ImageStage, emoji: Emoji, styles: tuple[str, ...]) -> dict[str, float]:
    """Top-1 within each task's own classes, on clean drawings over white."""
    names, _ = emoji.kinds
    rgba, concept = drawings(emoji, styles)
    x = on_background(F.interpolate(rgba, size=IMAGE_SIZE, mode="area"), torch.ones(1, 3, 1, 1))
    z = torch.cat([model.embed(b) for b in x.split(256)])
    out = {}
    for task, classes in emoji.tasks.items():
        label = {i: k for k, members in enumerate(classes.values()) for i in members}
        rows = [r for r, i in enumerate(concept.tolist()) if i in label]
        truth = torch.tensor([label[int(concept[r])] for r in rows])
        vectors = F.normalize(model.kinds[[names.index(c) for c in classes]], dim=-1)
        out[task] = ((z[rows] @ vectors.T).argmax(1) == truth).float().mean().item()
    return out


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    g = torch.Generator().manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    emoji = Emoji.load(args.emoji)
    rgba, concept = drawings(emoji, TRAIN_STYLES)
    names, kind_of = emoji.kinds
    kind = torch.from_numpy(kind_of)[concept]
    teacher = open_clip.create_model(f"local-dir:{args.teacher}").visual.eval()
    views, targets = teacher_pool(rgba, teacher, g)
    # Teacher features are centred: what all drawings share says nothing about any of them.
    targets = targets - targets.mean(dim=(0, 1))
    model = ImageStage(len(emoji.concepts), len(names), targets.shape[-1])
    average = copy.deepcopy(model).eval()
    decay = [p for n, p in model.named_parameters() if p.ndim > 1 and n not in ("concepts", "kinds")]
    rest = [p for n, p in model.named_parameters() if p.ndim <= 1 or n in ("concepts", "kinds")]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    warmup = args.steps // 20
    half, total, started = args.batch_size // 2, {}, time.time()
    log = (args.out / "log.jsonl").open("w")
    by_concept: dict[int, list[int]] = {}
    for row, index in enumerate(concept.tolist()):
        by_concept.setdefault(index, []).append(row)
    for step in range(args.steps):
        progress = max(0.0, (step - warmup) / (args.steps - warmup))
        lr = args.lr * min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        pooled = torch.randint(len(rgba), (half,), generator=g)
        view = torch.randint(POOL_VIEWS, (half,), generator=g)
        fresh = torch.randint(len(rgba), (args.batch_size - half,), generator=g)
        # A third of the fresh drawings are blended with another artist's drawing of the same concept.
        pick = torch.rand(len(fresh), generator=g)
        other = torch.tensor(
            [r[int(p * len(r))] for r, p in zip((by_concept[int(concept[f])] for f in fresh), pick, strict=True)]
        )
        weight = torch.rand(len(fresh), 1, 1, 1, generator=g)
        weight = torch.where(torch.rand(weight.shape, generator=g) < 0.33, weight, torch.ones(()))
        blended = weight * rgba[fresh] + (1 - weight) * rgba[other]
        x = torch.cat(
            [
                colour_jitter(views[view, pooled].float() / 255, g, strength=0.4),
                random_view(blended, IMAGE_SIZE, g),
            ]
        )
        rows = torch.cat([pooled, fresh])
        losses = model.losses(blur_or_noise(x, g), concept[rows], kind[rows], targets[view, pooled])
        loss = losses["concept"] + losses["kind"] + 4 * losses["teacher"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            keep = min(0.998, (step + 1) / (step + 10))
            for a, p in zip(average.parameters(), model.parameters(), strict=True):
                a.lerp_(p, 1 - keep)
        for name, value in losses.items():
            total[name] = total.get(name, 0.0) + value.item()
        if (step + 1) % args.log_every == 0 or step + 1 == args.steps:
            record = {"step": step + 1, "seconds": round(time.time() - started), "lr": lr}
            record |= {name: round(value / args.log_every, 4) for name, value in total.items()}
            record["validation"] = {k: round(v, 4) for k, v in kind_accuracy(average, emoji, VALIDATION_STYLES).items()}
            total = {}
            print(json.dumps(record), flush=True)
            log.write(json.dumps(record) + "\n")
            log.flush()
            torch.save(average.state_dict(), args.out / "snapshot.pt")
    record = {"test": kind_accuracy(average, emoji, TEST_STYLES)}
    print(json.dumps(record), flush=True)
    log.write(json.dumps(record) + "\n")
    torch.save(average.state_dict(), args.out / "image.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", type=Path, required=True, help="folder with emoji64.npz and concepts.json")
    parser.add_argument("--teacher", type=Path, required=True, help="open_clip local-dir whose image tower teaches")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=250)
    train(parser.parse_args())
