"""Make a model more robust, measure it before and after on images it has not seen, and look at both on one page."""

import clipguard

STEPS, IMAGES, PICTURES = 30, 40, 2

tuned = clipguard.finetune(
    "tecoa",
    out="tuned",
    model="tiny",
    dataset="emoji-food",
    eps=4 / 255,  # pixels of [0,1]; the text "4" is the same
    attack_steps=2,
    steps=STEPS,
    eval_every=STEPS,  # validated at the end only
    batch_size=16,
    lr=1e-4,
    eval_samples=IMAGES,
)
print(tuned)

result = clipguard.bench(["tiny", "local-dir:tuned"], "emoji-animals", eps=4 / 255, attacks="pgd-10", n_samples=IMAGES)
print(result)
result.save("before-and-after")

page = clipguard.report("before-and-after", "report.html", gallery=PICTURES)
print(f"Open {page} in a browser.")
