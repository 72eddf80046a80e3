"""Writes the tables of README.md anew, from the results that are there: `python tables.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
START, END = "<!-- tables.py writes what follows -->", "<!-- up to here -->"
Row = Iterable[object]


def table(headings: Row, rows: Iterable[Row]) -> str:
    """In Markdown."""
    lines = [f"| {' | '.join(map(str, headings))} |"]
    lines.append("|" + " --- |" * lines[0].count(" |"))
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines)


def spread(values: list[float], digits: int = 1) -> str:
    """Median, with the range of repeats."""
    median, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{median} ({low}–{high})"


def machine(content: dict[str, Any]) -> str:
    """Where and when a result was measured."""
    where = content.get("provenance", content)
    threads, torch = where["threads"], where["versions"]["torch"]
    return f"{where['date']}, {where['processor']}, {threads} thread{'s'[: threads != 1]}, torch {torch}"


def profile_attack(content: dict[str, Any]) -> str:
    loads = [row["load_average"] for row in content["results"]]
    rows = (
        (r["model"], r["batch_size"], f"`{r['attack']}`", f"{r['inside'][0]:.1f}", spread(r["outside"]), r["aim"])
        for r in content["results"]
    )
    return (
        table(("model", "batch", "attack", "inside, %", "outside, % (range)", "aim, %"), rows)
        + f"\n\nLoad average {min(loads):.1f} to {max(loads):.1f}: other work ran beside it, hence the ranges."
    )


def startup(content: dict[str, Any]) -> str:
    rows = []
    for name, r in content["results"].items():
        cpu, wall = (spread(r[key], 2) for key in ("cpu_seconds", "wall_seconds"))
        command = f'python -c "{name}"' if name.startswith("import") else f"clipguard {name}"
        rows.append((f"`{command}`", cpu, wall, f"{r['peak_mib'][0]:.0f}"))
    loads = content["load_average"]
    return (
        table(("command", "CPU s", "wall s", "peak MiB"), rows)
        + f"\n\n`bench` is `--attack none -n 8` on `tiny`. Load average {min(loads):.1f} to {max(loads):.1f} on "
        f"{content['cores']} cores: wall seconds are those of a busy machine."
    )


def attack_speed(content: dict[str, Any]) -> str:
    rows = []
    for name, entry in content.items():
        for variant, summary in entry["summary"].items():
            times = summary["times faster than the reference"]
            fewer = (summary[f"times fewer {which} passes"] or "–" for which in ("forward", "backward"))
            rows.append((name, entry["n"], variant, spread([times[k] for k in ("median", "min", "max")], 2), *fewer))
    headings = ("work", "images", "mode", "times faster (range)", "times fewer forward passes", "backward passes")
    return table(headings, rows)


def attack_memory(content: dict[str, Any]) -> str:
    rows = [
        (row["model"], row["batch_size"], f"`{name}`", ratio)
        for row in content["models"]
        for name, ratio in row["ratio"].items()
    ]
    return table(("model", "batch", "attack", "memory, of a plain gradient's"), rows)


def few_images(content: dict[str, Any]) -> str:
    rows = []
    for r in content["results"]:
        seconds = (min(r["before"]), min(r["after"]))
        rows.append((r["model"], r["images"], f"`{r['attack']}`", r["rows"], spread(r["times faster"], 2), *seconds))
    headings = ("model", "images", "attack", "filled up to", "times faster (range)", "CPU s with 16 rows", "CPU s")
    return table(headings, rows)


def head_cost(content: dict[str, Any]) -> str:
    rows = [
        (n, *(r[way] for way in ("product", "exact", "rows"))) for n, r in content["milliseconds_by_classes"].items()
    ]
    share = 100 * content["exact_share_of_a_pass_1000_classes"]
    return (
        table(("classes", "library's product, ms", "exact (clipguard's), ms", "by rows, ms"), rows)
        + f"\n\nExact cosines with 1,000 classes are {share:.3f} % of a pass of ViT-B/32 with gradients."
    )


def allocator(content: dict[str, Any]) -> str:
    rows = [(r["model"], r["batch_size"], spread(r["time"], 3), r["peak"]) for r in content["results"]]
    return table(("model", "batch", "CPU time, kept over default (range)", "peak memory"), rows)


def loading(content: dict[str, Any]) -> str:
    rows = [
        (f"{loop}", ratio["median"], ratio["fastest"], ratio["median_of_processor_seconds"])
        for loop, ratio in content["ratio_of_clipguard_to"].items()
    ]
    return f"{content['images']} images, {content['workers']} workers.\n\n" + table(
        ("`clipguard bench`, over", "median", "fastest", "processor seconds"), rows
    )


def pgd_cycles(content: dict[str, Any]) -> str:
    rows = []
    for r in content["results"]:
        what = (r["model"].partition(",")[0], f"`{r['attack']}`", r["eps"], f"{r['robust']} of {r['images']}")
        rows.append((*what, r["times fewer"], *r["cpu_seconds"]))
    headings = ("model", "attack", "eps", "robust", "times fewer passes", "CPU s without", "CPU s with")
    return table(headings, rows)


def plan_error(content: dict[str, Any]) -> str:
    rows = []
    for r in content["summary"]:
        spreads = (spread([r[name][key] for key in ("median", "least", "most")], 2) for name in ("passes", "seconds"))
        within = (f"{r[name]['within']} of {r['seeds']}" for name in ("passes", "seconds"))
        model = f"{r['model']} + {r['defense']}" if "defense" in r else r["model"]
        rows.append((model, f"`{r['attack']}`", *spreads, *within, f"{r['inside_bounds']} of {r['seeds']}"))
    headings = (
        "model",
        "attack",
        "passes, planned over run (range)",
        "seconds, planned over run",
        f"passes within {content['factor']}",
        f"seconds within {content['factor']}",
        "run inside the bounds",
    )
    return table(headings, rows)


SECTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "profile_attack": ("Share of an attack's time that the model takes", profile_attack),
    "startup": ("Start-up", startup),
    "attack_speed": ("clipguard beside the reference library", attack_speed),
    "attack_memory": ("Memory of a step", attack_memory),
    "few_images": ("Passes of few images", few_images),
    "head_cost": ("Exact cosines", head_cost),
    "allocator": ("Memory that the process keeps", allocator),
    "loading": ("Clean accuracy beside a bare loop", loading),
    "pgd_cycles": ("PGD whose iterate repeats", pgd_cycles),
    "plan_error": ("A plan beside its run", plan_error),
    "plan_error_defended": ("The same of defended models", plan_error),
}


def sections() -> str:
    """All that are measured, as Markdown."""
    parts = []
    for name, (title, write) in SECTIONS.items():
        path = HERE / "results" / f"{name}.json"
        if not path.exists():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        where = content if name != "attack_speed" else next(iter(content.values()))
        parts.append(f"### {title}\n\n`results/{name}.json`: {machine(where)}.\n\n{write(content)}\n")
    return "\n".join(parts)


def main() -> None:
    path = HERE / "README.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{START}\n\n{sections()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
