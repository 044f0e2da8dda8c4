"""real.py methods: perplexity of every method's plan, as cut and repaired."""

from __future__ import annotations

import argparse

from real_frame import Frame, Rows, made, open_frame

from saap_edge.pruning.kept import kept_structures
from saap_edge.pruning.plan import make_plan
from saap_edge.pruning.repair import Variant, judge_variants

TOGETHER = 5  # plans that are judged side by side: they share the dense model's passes


def methods(arguments: argparse.Namespace) -> None:
    rows = Rows(arguments.work, "methods")
    wanted = [(ratio, name) for ratio in arguments.ratios for name in arguments.methods]
    missing = [(ratio, name) for ratio, name in wanted if not rows.has(ratio=ratio, method=name)]
    with open_frame(arguments) as frame:
        for ratio in dict.fromkeys(ratio for ratio, _ in missing):
            names = [name for other, name in missing if other == ratio]
            for first in range(0, len(names), TOGETHER):
                judge(frame, ratio, names[first : first + TOGETHER], rows)


def judge(frame: Frame, ratio: float, names: list[str], rows: Rows) -> None:
    """Rows of some methods at one ratio; the dense model's where it is missing."""
    planner = frame.planner
    plans = {name: made(planner, name, ratio) for name in names}
    kept = [kept_structures(values, widths) for widths, values, _ in plans.values()]
    variants = [Variant(each, mix) for each in kept for mix in (None, planner.mix)]
    dense, *found = judge_variants(
        planner.model, variants, planner.calibration, frame.texts, precision=planner.precision
    )
    if not rows.has(method="dense"):
        rows.add({"ratio": 0.0, "method": "dense", "losses": {"dense": frame.by_text(dense)}})
    for (name, (widths, _, used)), cut, repaired in zip(plans.items(), found[::2], found[1::2], strict=True):
        summary = make_plan("", "", 0.0, planner.space, widths)
        rows.add({
            "ratio": ratio, "method": name, "plan": used, "removed": round(summary.achieved_ratio, 4),
            "perplexity": [round(cut.value, 2), round(repaired.value, 2)],
            "losses": {"cut": frame.by_text(cut), "repaired": frame.by_text(repaired)},
        })  # fmt: skip
