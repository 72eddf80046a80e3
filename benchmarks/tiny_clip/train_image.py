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
from emoji import TRAIN_STYLES, VALIDATION_STYLES, Emoji, on_background, premultiplied
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
TEACHER_SIZE = 96
TEACHER_DIM = 256


class ImageStage(nn.Module):
    """Image tower, vectors of the concepts and the kinds, and a linear map to the teacher's features."""

    def __init__(self, n_concepts: int, n_kinds: int) -> None:
        super().__init__()
        self.visual = open_clip.model.CLIP(**MODEL_CONFIG).visual.to(memory_format=torch.channels_last)
        dim = MODEL_CONFIG["embed_dim"]
        self.concepts = nn.Parameter(torch.randn(n_concepts, dim) * dim**-0.5)
        self.kinds = nn.Parameter(torch.randn(n_kinds, dim) * dim**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(math.log(15.0)))
        self.to_teacher = nn.Linear(dim, TEACHER_DIM)

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


class Batches:
    """Random views of the training drawings; with a teacher, half of each batch are views it has seen."""

    def __init__(self, emoji: Emoji, args: argparse.Namespace) -> None:
        self.g = torch.Generator().manual_seed(args.seed)
        self.args = args
        self.rgba, self.concept = drawings(emoji, TRAIN_STYLES)
        self.kind = torch.from_numpy(emoji.kinds[1])[self.concept]
        self.peers: dict[int, list[int]] = {}
        for row, index in enumerate(self.concept.tolist()):
            self.peers.setdefault(index, []).append(row)
        tasks = [i for task in emoji.tasks.values() for members in task.values() for i in members]
        in_task = torch.isin(self.concept, torch.tensor(tasks))
        share = in_task.float().mean() if args.task_share is None else args.task_share
        self.weight = torch.where(in_task, share / in_task.sum(), (1 - share) / (~in_task).sum())
        self.taught = args.batch_size // 2 if args.teacher else 0
        if args.teacher:
            self._ask_teacher(open_clip.create_model(f"local-dir:{args.teacher}").visual.eval())

    @torch.no_grad()
    def _ask_teacher(self, teacher: nn.Module) -> None:
        """Fixed uint8 views of every drawing (V, N, 3, 48, 48), and the teacher's features of them (V, N, D)."""
        views, features = [], []
        for view in range(self.args.pool_views):
            batches = [random_view(chunk, IMAGE_SIZE, self.g, self.args.strength) for chunk in self.rgba.split(256)]
            upscaled = (F.interpolate(b, size=TEACHER_SIZE, mode="bicubic").clamp(0, 1) for b in batches)
            features.append(torch.cat([teacher((b - MEAN) / STD) for b in upscaled]))
            views.append(torch.cat([(b * 255).round().byte() for b in batches]))
            print(f"teacher view {view + 1}/{self.args.pool_views}", flush=True)
        self.views, targets = torch.stack(views), torch.stack(features)
        # Centred: what all drawings share says nothing about any of them.
        self.targets = targets - targets.mean(dim=(0, 1))

    def draw(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Images (B, 3, 48, 48), their rows, and teacher features of the first of them."""
        rows = torch.multinomial(self.weight, self.args.batch_size, replacement=True, generator=self.g)
        taught, fresh = rows[: self.taught], rows[self.taught :]
        # A third of the fresh drawings are blended with another artist's drawing of the same concept.
        pick = torch.rand(len(fresh), generator=self.g).tolist()
        peers = [self.peers[c] for c in self.concept[fresh].tolist()]
        other = torch.tensor([p[int(u * len(p))] for p, u in zip(peers, pick, strict=True)])
        weight = torch.rand(len(fresh), 1, 1, 1, generator=self.g)
        weight = torch.where(torch.rand(weight.shape, generator=self.g) < 0.33, weight, torch.ones(()))
        blended = weight * self.rgba[fresh] + (1 - weight) * self.rgba[other]
        x, targets = [random_view(blended, IMAGE_SIZE, self.g, self.args.strength)], None
        if self.taught:
            view = torch.randint(self.args.pool_views, (self.taught,), generator=self.g)
            x.insert(0, colour_jitter(self.views[view, taught].float() / 255, self.g, 0.4 * self.args.strength))
            targets = self.targets[view, taught]
        return blur_or_noise(torch.cat(x), self.g, self.args.strength), rows, targets


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


def make_optimizer(model: ImageStage, lr: float) -> torch.optim.AdamW:
    """Weight decay on the matrices of the tower only."""
    free = ("concepts", "kinds")
    decay = [p for n, p in model.named_parameters() if p.ndim > 1 and n not in free]
    rest = [p for n, p in model.named_parameters() if p.ndim <= 1 or n in free]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    emoji = Emoji.load(args.emoji)
    batches = Batches(emoji, args)
    model = ImageStage(len(emoji.concepts), len(emoji.kinds[0]))
    if args.init is not None:
        model.load_state_dict(torch.load(args.init, weights_only=True))
    average = copy.deepcopy(model).eval()
    optimizer = make_optimizer(model, args.lr)
    warmup = args.steps // 20
    total: dict[str, float] = {}
    weights = {"concept": 1.0, "kind": args.kind_weight, "teacher": args.teacher_weight}
    started = time.time()
    log = (args.out / "log.jsonl").open("w")
    for step in range(args.steps):
        progress = max(0.0, (step - warmup) / (args.steps - warmup))
        lr = args.lr * min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        x, rows, targets = batches.draw()
        losses = model.losses(x, batches.concept[rows], batches.kind[rows], targets)
        optimizer.zero_grad(set_to_none=True)
        sum(weights[name] * loss for name, loss in losses.items()).backward()
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
    torch.save(average.state_dict(), args.out / "image.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", type=Path, required=True, help="folder with emoji64.npz and concepts.json")
    parser.add_argument("--teacher", type=Path, help="open_clip folder whose image tower teaches; default: none")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="go on from the image.pt of another run")
    parser.add_argument("--strength", type=float, default=1.0, help="of the augmentation, 0 to 1")
    parser.add_argument("--pool-views", type=int, default=12, help="fixed views of each drawing with teacher features")
    parser.add_argument("--task-share", type=float, help="share of a batch from the tasks' concepts; default: as drawn")
    parser.add_argument("--kind-weight", type=float, default=1.0)
    parser.add_argument("--teacher-weight", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=250)
    train(parser.parse_args())
