"""Transformers as the libraries that are not installed here write them, small: text, and images by attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["MODELS"]

Made = tuple[nn.Module, tuple[Any, ...]]
Tensor = torch.Tensor
WORDS = 19


def ids(length: int = 7) -> Tensor:
    return torch.randint(0, WORDS, (2, length))


class BertLayer(nn.Module):
    """Norms after the sums; queries, keys and values by layers of their own."""

    def __init__(self, c: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (c // heads) ** 0.5
        self.query, self.key, self.value, self.output = (nn.Linear(c, c) for _ in range(4))
        self.up, self.down = nn.Linear(c, hidden), nn.Linear(hidden, c)
        self.first, self.second = nn.LayerNorm(c), nn.LayerNorm(c)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = (f(x).view(n, t, self.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / self.scale + mask
        x = self.first(x + self.output((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, c)))
        return self.second(x + self.down(F.gelu(self.up(x))))


class Bert(nn.Module):
    """Guesses words by the table of them, which exporters copy, all or the first, where the table itself is read."""

    def __init__(self, c: int = 12, *, first_only: bool = False) -> None:
        super().__init__()
        self.first_only = first_only
        self.words, self.kinds, self.places = nn.Embedding(WORDS, c), nn.Embedding(2, c), nn.Embedding(16, c)
        self.register_buffer("numbers", torch.arange(16)[None])
        self.norm = nn.LayerNorm(c)
        self.layers = nn.ModuleList(BertLayer(c, 2, 20) for _ in range(2))
        self.transform, self.last = nn.Linear(c, c), nn.LayerNorm(c)
        self.decoder = nn.Linear(c, WORDS)
        self.decoder.weight = self.words.weight

    def forward(self, words: Tensor, kept: Tensor) -> Tensor:
        x = self.words(words) + self.places(self.numbers[:, : words.shape[1]]) + self.kinds(torch.zeros_like(words))
        mask = (1.0 - kept[:, None, None, :].float()) * -1e4
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask)
        x = x[:, 0] if self.first_only else x
        return self.decoder(self.last(F.gelu(self.transform(x))))


class RMSNorm(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class LlamaLayer(nn.Module):
    """Four heads of queries share two of keys and values; both are turned by position; a gated MLP."""

    def __init__(self, c: int, heads: int = 4, shared: int = 2, d: int = 4, hidden: int = 20) -> None:
        super().__init__()
        self.heads, self.shared, self.d = heads, shared, d
        self.q_proj = nn.Linear(c, heads * d, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(c, shared * d, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(heads * d, c, bias=False)
        self.gate_proj, self.up_proj = (nn.Linear(c, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, c, bias=False)
        self.before, self.after = RMSNorm(c), RMSNorm(c)

    def turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = self.d // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin

    def repeated(self, x: Tensor) -> Tensor:
        n, shared, t, d = x.shape
        g = self.heads // self.shared
        return x[:, :, None].expand(n, shared, g, t, d).reshape(n, shared * g, t, d)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        n, t, _ = x.shape
        y = self.before(x)
        q, k, v = (f(y).view(n, t, -1, self.d).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.turned(q, cos, sin), self.turned(k, cos, sin)
        scores = q @ self.repeated(k).transpose(2, 3) * self.d**-0.5 + mask
        x = x + self.o_proj((scores.softmax(-1) @ self.repeated(v)).transpose(1, 2).reshape(n, t, -1))
        y = self.after(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


class Llama(nn.Module):
    def __init__(self, c: int = 12, d: int = 4) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(WORDS, c)
        self.layers = nn.ModuleList(LlamaLayer(c, d=d) for _ in range(2))
        self.norm, self.lm_head = RMSNorm(c), nn.Linear(c, WORDS, bias=False)
        self.register_buffer("frequencies", 1 / 100 ** (torch.arange(0, d, 2).float() / d))

    def forward(self, words: Tensor) -> Tensor:
        t = words.shape[1]
        angles = torch.arange(t).float()[:, None] * self.frequencies
        angles = torch.cat((angles, angles), -1)
        mask = torch.full((t, t), -1e4).triu(1)
        x = self.embed_tokens(words)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin(), mask)
        return self.lm_head(self.norm(x))


class T5Layer(nn.Module):
    """No scale, and a bias by distance that all layers share; keys of their own size."""

    def __init__(self, c: int, heads: int, d: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(c, heads * d, bias=False) for _ in range(3))
        self.o = nn.Linear(heads * d, c, bias=False)
        self.norm = RMSNorm(c)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor | float) -> Tensor:
        n, t, _ = x.shape
        y = self.norm(x)
        memory = y if memory is x else memory
        q = self.q(y).view(n, t, self.heads, -1).transpose(1, 2)
        k, v = (f(memory).view(n, memory.shape[1], self.heads, -1).transpose(1, 2) for f in (self.k, self.v))
        scores = q @ k.transpose(3, 2) + bias
        return x + self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, -1))


class T5(nn.Module):
    """An encoder, and a decoder that looks at it; distances are looked up in a table of one number a head."""

    def __init__(self, c: int = 12, heads: int = 3, d: int = 4) -> None:
        super().__init__()
        self.shared, self.distances = nn.Embedding(WORDS, c), nn.Embedding(8, heads)
        self.encoder = nn.ModuleList(T5Layer(c, heads, d) for _ in range(2))
        self.own, self.across = T5Layer(c, heads, d), T5Layer(c, heads, d)
        self.wi, self.wo = nn.Linear(c, 20, bias=False), nn.Linear(20, c, bias=False)
        self.before, self.last, self.c = RMSNorm(c), RMSNorm(c), c

    def bias(self, t: int) -> Tensor:
        places = torch.arange(t)
        apart = (places[None] - places[:, None]).abs().clamp(max=7)
        return self.distances(apart).permute(2, 0, 1)[None]

    def forward(self, words: Tensor, made: Tensor) -> Tensor:
        x, bias = self.shared(words), self.bias(words.shape[1])
        for layer in self.encoder:
            x = layer(x, x, bias)
        y = self.shared(made)
        later = torch.full((made.shape[1],) * 2, -1e4).triu(1)
        y = self.own(y, y, self.bias(made.shape[1]) + later)
        y = self.across(y, x, 0.0)
        y = y + self.wo(F.relu(self.wi(self.before(y))))
        return F.linear(self.last(y) * self.c**-0.5, self.shared.weight)


class ClassAttention(nn.Module):
    """CaiT: only the class token asks; it and the patches answer."""

    def __init__(self, c: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (c // heads) ** -0.5
        self.q, self.k, self.v, self.proj = (nn.Linear(c, c) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q = self.q(x[:, 0]).unsqueeze(1).reshape(n, 1, self.heads, c // self.heads).permute(0, 2, 1, 3) * self.scale
        k, v = (f(x).reshape(n, t, self.heads, c // self.heads).permute(0, 2, 1, 3) for f in (self.k, self.v))
        return self.proj(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(n, 1, c))


class TalkingHeads(nn.Module):
    """CaiT: heads are mixed before and after the softmax."""

    def __init__(self, c: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (c // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.proj_l, self.proj_w = nn.Linear(heads, heads), nn.Linear(heads, heads)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = self.proj_l((q * self.scale @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weights = self.proj_w(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, c))


class Cait(nn.Module):
    def __init__(self, c: int = 12, heads: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, c, 4, 4)
        self.pos_embed, self.cls_token = (nn.Parameter(torch.randn(1, t, c) * 0.2) for t in (9, 1))
        self.norms = nn.ModuleList(nn.LayerNorm(c) for _ in range(5))
        self.gammas = nn.ParameterList(nn.Parameter(torch.full((c,), 1e-5)) for _ in range(4))
        self.attention, self.of_class = TalkingHeads(c, heads), ClassAttention(c, heads)
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(c, 16), nn.GELU(), nn.Linear(16, c)) for _ in range(2))
        self.head = nn.Linear(c, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.pos_embed
        x = x + self.gammas[0] * self.attention(self.norms[0](x))
        x = x + self.gammas[1] * self.mlps[0](self.norms[1](x))
        token = self.cls_token.expand(x.shape[0], -1, -1)
        token = token + self.gammas[2] * self.of_class(self.norms[2](torch.cat((token, x), 1)))
        token = token + self.gammas[3] * self.mlps[1](self.norms[3](token))
        return self.head(self.norms[4](torch.cat((token, x), 1))[:, 0])


class CrossCovariance(nn.Module):
    """XCiT: attention between channels, of keys and queries of length one along the tokens."""

    def __init__(self, c: int, heads: int) -> None:
        super().__init__()
        self.heads, self.temperature = heads, nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 4, 1)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        return self.proj((scores.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(n, t, c))


class Xcit(nn.Module):
    """Cross-covariance, then a local interaction of patches by depthwise convolutions."""

    def __init__(self, c: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, c, 4, 4)
        self.attention = CrossCovariance(c, heads)
        self.norms = nn.ModuleList(nn.LayerNorm(c) for _ in range(3))
        self.conv1, self.bn = nn.Conv2d(c, c, 3, 1, 1, groups=c), nn.BatchNorm2d(c)
        self.conv2 = nn.Conv2d(c, c, 3, 1, 1, groups=c)
        self.mlp = nn.Sequential(nn.Linear(c, 16), nn.GELU(), nn.Linear(16, c))
        self.head = nn.Linear(c, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        n, c, h, w = x.shape
        x = x.flatten(2).transpose(1, 2)
        x = x + self.attention(self.norms[0](x))
        y = self.norms[1](x).permute(0, 2, 1).reshape(n, c, h, w)
        x = x + self.conv2(self.bn(F.gelu(self.conv1(y)))).reshape(n, c, h * w).permute(0, 2, 1)
        return self.head((x + self.mlp(self.norms[2](x))).mean(1))


def bert() -> Made:
    return Bert(), (ids(), torch.ones(2, 7, dtype=torch.int64))


def bert_tied() -> Made:
    return Bert(first_only=True), (ids(), torch.ones(2, 7, dtype=torch.int64))


def llama() -> Made:
    return Llama(), (ids(),)


def t5() -> Made:
    return T5(), (ids(), ids(5))


def cait() -> Made:
    return Cait(), (torch.randn(2, 3, 12, 12),)


def xcit() -> Made:
    return Xcit(), (torch.randn(2, 3, 12, 12),)


MODELS = {"bert": bert, "bert_tied": bert_tied, "llama": llama, "t5": t5, "cait": cait, "xcit": xcit}
