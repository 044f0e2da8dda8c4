#!/usr/bin/env bash
# torch 2.13.0: on a CPU with AVX512-BF16, scaled_dot_product_attention in bfloat16 is no faster than in float32.
#
# One would expect attention to gain from bfloat16 what products of matrices gain, which is about twice the speed on such a
# processor. The kernel that torch takes on CPUs (flash attention) gains nothing, at any length, forward or with its
# gradient. Attention written out, two batched products and a softmax, gains as products do: with its gradient it takes
# half of the kernel's time for windows of 128 to 512 tokens, where training often is; from about 1,000 tokens on the
# kernel is the faster one again, because it leaves out what is masked.
#
# Nine heads of 64, causal, 512 tokens in all, one thread. CPU seconds, the best of turns; no other processor was tried, and
# where bfloat16 does not double the speed of products, the script says so and ends.
#
# Run: findings/torch-attention-gains-nothing-from-bfloat16.sh      (Linux, x86-64, some minutes: torch is large)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6 2> /dev/null
cat > "$folder/run.py" << 'EOF'
import time

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

torch.set_num_threads(1)
torch.manual_seed(0)
KINDS = (torch.float32, torch.bfloat16)
HEADS, WIDTH, TOKENS = 9, 64, 512


def product(kind):
    rows, weight = torch.randn(TOKENS, 576).to(kind), torch.randn(1536, 576).to(kind)
    return lambda: linear(rows, weight)


def attention(window, kind, written_out):
    parts = [torch.randn(TOKENS // window, HEADS, window, WIDTH).to(kind).requires_grad_() for _ in range(3)]
    wanted, hidden = torch.randn_like(parts[0]), torch.full((window, window), -torch.inf).triu(1).to(kind)

    def kernel():
        return scaled_dot_product_attention(*parts, is_causal=True)

    def products():
        query, key, value = (part.flatten(0, 1) for part in parts)
        scores = torch.baddbmm(hidden, query, key.transpose(1, 2), alpha=WIDTH**-0.5)
        return torch.bmm(scores.softmax(-1), value).view_as(parts[0])

    act = products if written_out else kernel
    with torch.no_grad():
        assert torch.allclose(products().float(), kernel().float(), atol=0.05 if kind == torch.bfloat16 else 1e-4)
    return lambda: act().backward(wanted)


def milliseconds(acts, turns=15):
    """The least of each, by turns."""
    best = [float("inf")] * len(acts)
    for _ in range(turns):
        for number, act in enumerate(acts):
            started = time.process_time()
            act()
            best[number] = min(best[number], 1000 * (time.process_time() - started))
    return best


print("torch", torch.__version__, *(name for name in ("avx512_bf16", "amx_bf16") if torch.cpu.get_capabilities().get(name)))
slow, fast = milliseconds([product(kind) for kind in KINDS])
print(f"product of 512 x 576 x 1536: float32 {slow:.1f} ms, bfloat16 {fast:.1f} ms")
if slow < 1.6 * fast:
    print("bfloat16 does not double the speed of products here: nothing to compare")
    raise SystemExit
for window in (128, 256, 512):
    given = [(kind, written_out) for written_out in (False, True) for kind in KINDS]
    full, half, wide, written = milliseconds([attention(window, *each) for each in given])
    print(f"attention and its gradient, windows of {window}: kernel {full:.1f} and {half:.1f} ms, "
          f"written out {wide:.1f} and {written:.1f} ms")
    assert full < 1.3 * half, "the kernel gains from bfloat16 now"
    assert written < 0.75 * half, "the kernel is as fast as products now"
print("as described")
EOF
"$folder/venv/bin/python" "$folder/run.py"
# Output seen (AMD EPYC):
#   torch 2.13.0+cpu avx512_bf16
#   product of 512 x 576 x 1536: float32 9.6 ms, bfloat16 4.8 ms
#   attention and its gradient, windows of 128: kernel 9.0 and 15.6 ms, written out 9.3 and 4.9 ms
#   attention and its gradient, windows of 256: kernel 14.6 and 17.4 ms, written out 17.8 and 8.1 ms
#   attention and its gradient, windows of 512: kernel 29.2 and 28.2 ms, written out 31.6 and 14.3 ms
#   as described
