"""How robust is a module of your own? Any torch.nn.Module that maps pixels in [0,1] to logits will do.

The one here is a small convolutional network that learns some of the embedded pictures of food in a few
seconds; the others are attacked.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import to_tensor

import clipguard
from clipguard.attacks.methods.apgd import APGD

IMAGES, ITERATIONS, STEPS = 64, 20, 60
EPS = 4 / 255  # a number is pixels of [0,1]; the text "4" is the same


class SmallNet(nn.Sequential):
    """Pixels (B, 3, 32, 32) in [0,1] -> logits (B, classes); normalisation belongs inside, where attacks see it."""

    def __init__(self, classes):
        layers = [nn.Conv2d(3, 32, 5, stride=2), nn.ReLU(), nn.Conv2d(32, 64, 5, stride=2), nn.ReLU(), nn.Flatten()]
        super().__init__(nn.BatchNorm2d(3), *layers, nn.Linear(64 * 5 * 5, classes))


torch.manual_seed(0)
data = clipguard.load_dataset("emoji-food")
pixels = torch.stack([to_tensor(data.image(i).resize((32, 32))) for i in range(len(data))])
test = torch.zeros(len(data), dtype=torch.bool)
test[data.subset(IMAGES, seed=0)] = True  # of each class as many, as far as there are
images, labels = pixels[test], torch.tensor(data.labels)[test]

module = SmallNet(len(data.class_names))
optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
for _ in range(STEPS):
    optimizer.zero_grad()
    F.cross_entropy(module(pixels[~test]), torch.tensor(data.labels)[~test]).backward()
    optimizer.step()
module.eval()  # a module in train mode is refused
attack = APGD(iterations=ITERATIONS)

print(clipguard.bench(module, (images, labels, data.class_names), eps=[EPS / 4, EPS], attacks=attack))

outcome = clipguard.attack(module, images, labels, eps=EPS, attack=attack)  # the adversarial images: outcome.x_adv
print(outcome)
print(outcome.to_frame()[["label", "clean_pred", "adv_pred", "broken_by"]].head(4))

print(clipguard.doctor(module, images, labels, eps=EPS, attack=attack))  # is the robustness real?
