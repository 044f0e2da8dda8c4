"""Scoring, repair and the bank's moments on a model spread over two pretend GPUs: run as a program, prints "ok".

The tensors are torch's fake ones on a device that exists by name only: they have no values, but an operation on tensors
of two devices is an error, as on GPUs. Registering the device changes the whole process, hence a program of its own.
What fake tensors cannot do is replaced: the autograd engine, and reading values.
"""

from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers import LlamaConfig, LlamaForCausalLM

from saap_edge.model.stream import attention_branch, ffn_branch, follow, layer_arguments, layer_inputs
from saap_edge.pruning.bank import _advance
from saap_edge.pruning.repair import repair
from saap_edge.pruning.score import score_model

MAP = {"embed_tokens": 0, "rotary_emb": 0, "layers.0": 0, "layers.1": 1, "layers.2": 1, "norm": 1}


def moved(value, device):
    if isinstance(value, tuple):
        return tuple(moved(part, device) for part in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value


def spread_model():
    """Weights on two devices, and forwards that fetch their inputs, wrapped as accelerate's hooks wrap them."""
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=4, head_dim=16, tie_word_embeddings=True,
    )).eval()  # fmt: skip

    def place(module, device):
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(torch.empty(parameter.shape, device=device))
        for name, buffer in list(module._buffers.items()):
            module._buffers[name] = torch.empty(buffer.shape, device=device)
        forward = module.forward
        module.forward = lambda *inputs, **keywords: forward(
            *moved(inputs, device), **{name: moved(value, device) for name, value in keywords.items()}
        )

    for name, number in MAP.items():
        for module in model.model.get_submodule(name).modules():
            place(module, f"pretend:{number}")
    place(model.lm_head, "pretend:0")
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


class NoValues:
    """What `.cpu()` gives."""

    def __init__(self, tensor):
        self.shape = tuple(tensor.shape)

    def numpy(self):
        return np.zeros(self.shape, dtype=np.float32)


def main():
    _setup_privateuseone_for_python_backend("pretend")
    finite = mock.patch.object(torch.Tensor, "__bool__", lambda tensor: True)
    with FakeTensorMode(allow_non_fake_inputs=True), finite:
        model, windows = spread_model(), torch.zeros(4, 8, dtype=torch.long)
        reduced = []

        def backward(states, gradient):
            assert gradient.device == states.device and gradient.shape == states.shape
            for parameter in model.parameters():
                for hook in list((parameter._post_accumulate_grad_hooks or {}).values()):
                    parameter.grad = torch.zeros_like(parameter)
                    hook(parameter)
                    reduced.append(parameter)

        with (
            mock.patch.object(torch.autograd, "grad", lambda loss, piece: (torch.zeros_like(piece),)),
            mock.patch.object(torch.Tensor, "backward", backward),
            mock.patch.object(torch.Tensor, "cpu", lambda tensor: NoValues(tensor)),
            mock.patch.object(torch.Tensor, "__float__", lambda tensor: 1.0),
        ):
            score_model(model, list(windows.split(2)), {}, running_fisher=True)
        assert len(reduced) == 2 * 3 * 7
        kept = [{"attention": np.array([0, 2]), "slots": np.array([0, 1]), "ffn": np.arange(64)} for _ in range(3)]
        repair(model, kept, windows, bias=True)
        with torch.no_grad():
            states = layer_inputs(model, windows)
            for layer, keywords in zip(model.model.layers, layer_arguments(model, windows), strict=True):
                follow(layer, states)
                _advance(layer.self_attn.o_proj, attention_branch(layer, keywords), states)
                _advance(layer.mlp.down_proj, ffn_branch(layer, keywords), states)
    print("ok")


if __name__ == "__main__":
    main()
