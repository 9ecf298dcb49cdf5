# Trains the models of package bench with PyTorch in eager mode: same shapes, batch and optimiser, random tokens.
# Reads one JSON object from the command line and prints one JSON object: {"tokens_per_second", "parameters", "version"}.
import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

job = json.loads(sys.argv[1])
W, LAYERS, HEADS, INNER, CONTEXT, VOCAB = (job[k] for k in ("width", "layers", "heads", "inner", "context", "vocab"))
torch.set_num_threads(job["threads"])
torch.manual_seed(1)


class RMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(W))

    def forward(self, x):
        if hasattr(F, "rms_norm"):
            return F.rms_norm(x, (W,), self.weight, 1e-5)
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def split(x):
    b, t, _ = x.shape
    return x.view(b, t, HEADS, W // HEADS).transpose(1, 2)


def attend(q, k, v):
    b, _, t, _ = q.shape
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, W)


class LlamaLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1, self.n2 = RMSNorm(), RMSNorm()
        self.q, self.k, self.v, self.o = (nn.Linear(W, W, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(W, INNER, bias=False), nn.Linear(W, INNER, bias=False)
        self.down = nn.Linear(INNER, W, bias=False)

    def turn(self, x, cos, sin):
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((-b, a), -1) * sin

    def forward(self, x, cos, sin):
        h = self.n1(x)
        q, k = self.turn(split(self.q(h)), cos, sin), self.turn(split(self.k(h)), cos, sin)
        x = x + self.o(attend(q, k, split(self.v(h))))
        h = self.n2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, W)
        self.layers = nn.ModuleList(LlamaLayer() for _ in range(LAYERS))
        self.norm = RMSNorm()
        head = W // HEADS
        angle = torch.outer(torch.arange(CONTEXT).float(), 10000.0 ** (-torch.arange(0, head, 2).float() / head))
        angle = torch.cat((angle, angle), -1)
        self.cos, self.sin = angle.cos(), angle.sin()

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return F.linear(self.norm(x), self.embed.weight)


class GPT2Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(W), nn.LayerNorm(W)
        self.qkv, self.o = nn.Linear(W, 3 * W), nn.Linear(W, W)
        self.fc, self.proj = nn.Linear(W, 4 * W), nn.Linear(4 * W, W)

    def forward(self, x):
        q, k, v = self.qkv(self.n1(x)).chunk(3, -1)
        x = x + self.o(attend(split(q), split(k), split(v)))
        return x + self.proj(F.gelu(self.fc(self.n2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.positions = nn.Embedding(VOCAB, W), nn.Embedding(CONTEXT, W)
        self.layers = nn.ModuleList(GPT2Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(W)

    def forward(self, tokens):
        x = self.embed(tokens) + self.positions(torch.arange(CONTEXT))
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.embed.weight)


model = Llama() if job["shape"] == "llama" else GPT2()
options = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
try:
    optimiser = torch.optim.AdamW(model.parameters(), fused=True, **options)
except (TypeError, RuntimeError):
    optimiser = torch.optim.AdamW(model.parameters(), **options)
tokens = torch.randint(VOCAB, (job["rows"], CONTEXT))
targets = torch.randint(VOCAB, (job["rows"], CONTEXT))


def step():
    optimiser.zero_grad(set_to_none=True)
    loss = F.cross_entropy(model(tokens).view(-1, VOCAB), targets.view(-1))
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()


step()
step()
steps, start = 0, time.perf_counter()
while steps == 0 or time.perf_counter() - start < job["seconds"]:
    step()
    steps += 1
seconds = time.perf_counter() - start
print(json.dumps({
    "tokens_per_second": steps * tokens.numel() / seconds,
    "parameters": sum(p.numel() for p in model.parameters()),
    "version": torch.__version__,
}))
