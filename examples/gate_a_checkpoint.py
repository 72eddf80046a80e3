"""Did a checkpoint get worse? Exit code 1 if so, for CI.

The candidate here is the embedded model behind a wrong normalisation, a mistake that happens.

    python gate_a_checkpoint.py [BASE CANDIDATE]
"""

import sys
from pathlib import Path

import clipguard

BASE, CANDIDATE = "tiny", "tiny#normalization=0,0,0/0.2,0.2,0.2"
HOW = {"datasets": ["emoji-animals", "emoji-food"], "eps": 1 / 255, "attacks": "pgd-3", "n_samples": 60}
MAX_DROP = 5.0  # points of accuracy, clean or under attack

base, candidate = sys.argv[1:3] if len(sys.argv) > 2 else (BASE, CANDIDATE)

for name, model in (("base", base), ("candidate", candidate)):
    result = clipguard.bench(model, **HOW)
    print(result)
    result.save(Path("gate") / name)  # the files of `clipguard bench`; a base is measured once and kept

comparison = clipguard.compare("gate/base", "gate/candidate", max_drop=MAX_DROP)
print(comparison)
comparison.save("gate/comparison.json")
Path("gate/comment.md").write_text(comparison.to_markdown(), encoding="utf-8")  # for the pull request

sys.exit(1 if comparison.verdict == "regression" else 0)
