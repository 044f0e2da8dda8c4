"""A GGUF file or an OpenVINO folder in OpenVINO GenAI's LLMPipeline."""

import json
import sys
from importlib.metadata import version

sys.modules["openvino_telemetry"] = None

import numpy as np  # noqa: E402
import openvino  # noqa: E402
import openvino_genai  # noqa: E402

asked = json.loads(sys.argv[1])
pipeline = openvino_genai.LLMPipeline(asked["path"], "CPU", INFERENCE_NUM_THREADS=1)
settings = openvino_genai.GenerationConfig()
settings.max_new_tokens, settings.do_sample, settings.ignore_eos = asked["new"], False, True
made = pipeline.generate(openvino.Tensor(np.array([asked["ids"]], np.int64)), settings)
print(json.dumps({"version": version("openvino-genai"), "tokens": [int(token) for token in made.tokens[0]]}))
