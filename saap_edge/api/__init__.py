"""The Python interface: what `import saap_edge as se` offers.

The commands call these functions, and hold no rule of their own. All functions raise `SaapError` for bad input: one
line that says what is wrong and what to do. Nothing is printed. `progress` takes a `Progress`, or a function that is
called with (what, steps done, steps in all or None). Documents (`run.bench`, `run.gate`, `run.report`, `run.plan`)
read by attribute, or by key as in their files; `as_dict()` gives the JSON. Modules that need torch are loaded when a
function needs them.

The examples below are run by tests/test_api.py. They work in a folder with these files: `model`, a Hugging Face folder;
`text.txt`; `recipe.yaml`, which names texts and asks for little work; `sweep.yaml`, with that recipe at two ratios;
`budget.yaml`, with a limit on the size of the file; `bundle`, made by `saap-edge bundle out --out bundle`. `run` is the
finished run of the first example.

Examples:
    >>> import saap_edge as se
    >>> run = se.compile("model", recipe="recipe.yaml", ratio=0.3, out="out")
    >>> list(run.files)
    ['gguf-q4_0']
    >>> run.report.plan.achieved_ratio >= 0.3
    True
    >>> se.predict(run.files["gguf-q4_0"], target="rpi5").fits
    True
    >>> se.gate(run, "budget.yaml").verdict
    'pass'
"""

from saap_edge.api.drafting import draft
from saap_edge.api.judging import evaluate, gate, predict, predict_document
from saap_edge.api.layouts import export_for
from saap_edge.api.measuring import bench, bench_stage, verify
from saap_edge.api.publishing import card, push
from saap_edge.api.recipes import recipe_of
from saap_edge.api.registering import register_family, register_metric, register_order
from saap_edge.api.results import Fit, Frontier, Run
from saap_edge.api.schemas import DOCUMENTS, schema
from saap_edge.api.stages import bank, compile, export, plan, prune, recover, resume, score, write, write_report
from saap_edge.api.sweeping import sweep
from saap_edge.api.tracking import history
from saap_edge.api.worth import RATIOS, RIVALS, fit, frontier
from saap_edge.errors import SaapError
from saap_edge.progress import Progress

__all__ = [
    "DOCUMENTS", "RATIOS", "RIVALS", "Fit", "Frontier", "Progress", "Run", "SaapError", "bank", "bench", "bench_stage",
    "card", "compile", "draft", "evaluate", "export", "export_for", "fit", "frontier", "gate", "history", "plan",
    "predict", "predict_document", "prune", "push", "recipe_of", "recover", "register_family", "register_metric",
    "register_order", "resume", "schema", "score", "sweep", "verify", "write", "write_report",
]  # fmt: skip
