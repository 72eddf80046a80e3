"""An adversarially trained copy of the embedded model, for studies that need survivors.

`python robust_tiny.py --out /tmp/robust-tiny`: plain adversarial training of the image tower (cross-entropy on PGD
images, frozen text) on the embedded train splits. Five minutes on one core; no method of the literature is meant.
"""

from __future__ import annotations

import argparse
import json
import shutil
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import clipguard
from clipguard.data import list_datasets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--eps", type=float, default=8.0, help="in units of 1/255")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    g = torch.Generator().manual_seed(args.seed)
    loaded = clipguard.load_model("tiny")
    preprocess, tasks = loaded.preprocess(), []
    for info in list_datasets():
        data = clipguard.load_dataset(info.name, split="train")
        x = torch.stack([preprocess(data.image(i)) for i in range(len(data))])
        tasks.append((loaded.classifier(data.class_names, data.templates), x, torch.from_numpy(data.labels)))
    visual = loaded.model.visual
    visual.requires_grad_(True)
    optimizer = torch.optim.AdamW(visual.parameters(), lr=5e-4, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=args.steps)
    eps = args.eps / 255
    for step in range(args.steps):
        classifier, images, labels = tasks[step % len(tasks)]
        rows = torch.randint(len(images), (args.batch_size,), generator=g)
        x, y = images[rows], labels[rows]
        x_adv = (x + eps * (2 * torch.rand(x.shape, generator=g) - 1)).clamp(0, 1)
        visual.requires_grad_(False)
        for _ in range(3):
            x_adv.requires_grad_(True)
            (grad,) = torch.autograd.grad(F.cross_entropy(classifier(x_adv), y), x_adv)
            x_adv = (x_adv.detach() + eps / 2 * grad.sign()).clamp(x - eps, x + eps).clamp(0, 1)
        visual.requires_grad_(True)
        loss = F.cross_entropy(classifier(x_adv.detach()), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(json.dumps({"step": step + 1, "loss": round(loss.item(), 4)}), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    source = Path(str(files("clipguard"))) / "assets" / "models" / "tiny" / "open_clip_config.json"
    shutil.copy(source, args.out)
    state = {k: v.detach().contiguous() for k, v in loaded.model.state_dict().items()}
    save_file(state, args.out / "open_clip_model.safetensors")


if __name__ == "__main__":
    main()
