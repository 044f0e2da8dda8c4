"""The Python interface: what `import saap_edge as se` offers.

    import saap_edge as se

    run = se.compile("HuggingFaceTB/SmolLM2-135M-Instruct", target="rpi5", ratio=0.2, out="out")
    run.plan, run.files["gguf-q4_0"], run.report
    se.predict(run.files["gguf-q4_0"], target="rpi5").decode_tok_s
    se.gate(run, "budgets.yaml").verdict

The command line calls these functions, and nothing else: every rule and every refusal is here. All raise SaapError, one
line that says what is wrong and what to do. Nothing is printed: `progress` takes a `Progress`, or a function that is
called with (what, steps done, steps in all or None). Documents (`run.bench`, `run.gate`, `run.report`, `run.plan`) are
models: they read by attribute, or by key as in their files, and `as_dict()` gives the JSON. Modules that need torch are
loaded when a function needs them.
"""

from saap_edge.api.judging import bench, bench_stage, evaluate, gate, predict, predict_document, verify
from saap_edge.api.recipes import recipe_of
from saap_edge.api.registering import register_family, register_metric, register_order
from saap_edge.api.results import Fit, Frontier, Run
from saap_edge.api.schemas import DOCUMENTS, schema
from saap_edge.api.stages import bank, compile, export, plan, prune, recover, resume, score, write_report
from saap_edge.api.worth import RATIOS, RIVALS, fit, frontier
from saap_edge.errors import SaapError
from saap_edge.progress import Progress

__all__ = [
    "DOCUMENTS", "RATIOS", "RIVALS", "Fit", "Frontier", "Progress", "Run", "SaapError", "bank", "bench", "bench_stage",
    "compile", "evaluate", "export", "fit", "frontier", "gate", "plan", "predict", "predict_document", "prune",
    "recipe_of", "recover", "register_family", "register_metric", "register_order", "resume", "schema", "score",
    "verify", "write_report",
]  # fmt: skip
