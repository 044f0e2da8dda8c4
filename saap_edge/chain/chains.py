"""The chains: which stages a run is made of. A stage is one file of stages/."""

from saap_edge.chain.rule import Rule
from saap_edge.chain.stages import bank, bench, dense, export, gate, plan, prune, recover, report, score, verify, write

__all__ = ["COMPILE", "DENSE", "ORDER", "TUNE", "WRITING"]

COMPILE: tuple[Rule, ...] = (
    score.RULE, bank.RULE, plan.RULE, prune.RULE, recover.RULE, dense.RULE, export.RULE, verify.RULE, bench.RULE,
    gate.RULE, report.RULE,
)  # fmt: skip
# Recovery of a model as it is, pruned elsewhere or not at all.
TUNE: tuple[Rule, ...] = (recover.ALONE, dense.RULE, export.TUNED, verify.RULE, bench.RULE, gate.RULE)
# The text that a model writes itself. Where a recipe asks for it, other stages need this one, so that it is made first.
WRITING: tuple[Rule, ...] = (write.RULE,)
DENSE: tuple[Rule, ...] = (dense.RULE, verify.DENSE, bench.DENSE)  # no pruning at all: what is compared with

ORDER = tuple(rule.name for rule in COMPILE)
