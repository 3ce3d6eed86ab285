"""The reference that pruning is held to: nothing is removed, and what was pruned is masked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from mmg_bench.methods.base import Method
from mmg_bench.models.adapter import adapter_for
from mmg_bench.tokens import LayerTokens, PrunedTokens, Selection, VideoTokens


@dataclass
class Trace:
    """What a method chose while a prompt was answered."""

    pruned: list[PrunedTokens] = field(default_factory=list)
    stages: list[tuple[int, LayerTokens, Selection]] = field(default_factory=list)
    keys: list[Tensor | None] = field(default_factory=list)


@contextmanager
def traced(method: Method, depth: int) -> Iterator[Trace]:
    trace, kind = Trace(), type(method)
    layers = method.layers(depth)
    prune, inside, select = kind.prune, kind.prune_inside, kind.select_keys

    def traced_prune(self: Any, tokens: VideoTokens) -> PrunedTokens:
        trace.pruned.append(prune(self, tokens))
        return trace.pruned[-1]

    def prune_inside(self: Any, tokens: LayerTokens) -> Selection:
        chosen = inside(self, tokens)
        trace.stages.append((layers[tokens.stage], tokens, chosen))
        return chosen

    def select_keys(self: Any, attention: Tensor, memory: Tensor | None) -> tuple[Tensor | None, Tensor]:
        chosen, memory = select(self, attention, memory)
        trace.keys.append(chosen)
        return chosen, memory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "prune", traced_prune)
        patch.setattr(kind, "prune_inside", prune_inside)
        patch.setattr(kind, "select_keys", select_keys)
        yield trace


@dataclass(frozen=True)
class Prompt:
    """What the stock language model is called with for one prompt with one video."""

    embeds: Tensor  # [1, S, D]
    ids: Tensor  # [1, S], or [3, 1, S] for time, height and width
    visual: list[int]  # columns of the video's tokens
    additions: list[Tensor]  # [1, S, D], added behind each of the first layers


def stock_prompt(model: Any, inputs: dict[str, Tensor], visual: list[int]) -> Prompt:
    calls: list[dict[str, Any]] = []
    handle = adapter_for(model).language_model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    model.generate(**inputs, max_new_tokens=1)
    handle.remove()
    call = calls[0]
    embeds, ids = call["inputs_embeds"], call["position_ids"]
    additions = []
    for features in call.get("deepstack_visual_embeds") or ():
        dense = torch.zeros_like(embeds)
        dense[call["visual_pos_masks"]] = features
        additions.append(dense)
    return Prompt(embeds, ids[-3:] if ids.dim() == 3 else ids, visual, additions)


def closed(ids: Tensor, order: list[int]) -> Tensor:
    """Position ids of the columns in `order`, without gaps; the others keep theirs, which nobody sees."""
    ids = ids.clone()
    if ids.dim() == 2:
        ids[0, order] = torch.arange(len(order))
    else:
        number = {old: new for new, old in enumerate(sorted(set(ids[:, 0, order].flatten().tolist())))}
        for axis in range(3):
            ids[axis, 0, order] = torch.tensor([number[i] for i in ids[axis, 0, order].tolist()])
    return ids


def _chosen(body: list[int], places: list[int], index: list[int]) -> tuple[list[int], list[int]]:
    """What is left of visual columns and of the places where they stand, which the chosen take in their new order."""
    return [body[i] for i in index], sorted(places[i] for i in index)


def _changed(x: Tensor, body: list[int], chosen: Selection) -> Tensor:
    """Hidden states `[1, S, D]` in which the columns in `body` have what a stage made of them."""
    if chosen.features is not None:
        x = x.clone()
        x[0, body] = chosen.features
    return x


def _attended(layer: Any, x: Tensor, mask: Tensor, rotary: Any) -> Tensor:
    """What the attention of a decoder layer adds to `x` `[1, S, D]`; GLM-4V normalises it."""
    made = layer.self_attn(layer.input_layernorm(x), attention_mask=mask, position_embeddings=rotary)[0]
    return layer.post_self_attn_layernorm(made) if hasattr(layer, "post_self_attn_layernorm") else made


def _transformed(layer: Any, x: Tensor) -> Tensor:
    """What the MLP of a decoder layer adds to `x` `[1, S, D]`; GLM-4V normalises it."""
    made = layer.mlp(layer.post_attention_layernorm(x))
    return layer.post_mlp_layernorm(made) if hasattr(layer, "post_mlp_layernorm") else made


def kept_logits(model: Any, prompt: Prompt, first: PrunedTokens, positions: str, steps: int) -> Tensor:
    """Logits `[steps, vocabulary]` of greedy decoding by the stock language model, given only what is left of a prompt.

    Without a cache: every step runs all of it. For layers that see a sequence, in which no mask hides a gap.
    """
    language, width, visual = adapter_for(model).language_model, prompt.embeds.shape[1], set(prompt.visual)
    body = torch.tensor(prompt.visual)[first.positions].tolist()
    embeds = prompt.embeds.clone()
    embeds[0, body] = first.features.to(embeds.dtype)
    order = [column for column in range(width) if column in body or column not in visual]
    ids = closed(prompt.ids, order) if positions == "contiguous" else prompt.ids
    x, ids = embeds[:, order], ids[..., order]
    logits: list[Tensor] = []
    for _ in range(steps):
        mask = torch.ones(x.shape[:2], dtype=torch.long)  # or a jump in position ids would be taken for a border
        hidden = language(inputs_embeds=x, attention_mask=mask, position_ids=ids, use_cache=False).last_hidden_state
        logits.append(model.lm_head(hidden)[0, -1])
        x = torch.cat([x, model.get_input_embeddings()(logits[-1].argmax().view(1, 1))], dim=1)
        ids = torch.cat([ids, ids[..., -1:] + 1], dim=-1)
    return torch.stack(logits)


def masked_logits(model: Any, prompt: Prompt, method: Method, positions: str, trace: Trace, steps: int) -> Tensor:
    """Logits `[steps, vocabulary]` of greedy decoding, without a cache: every step runs the whole sequence."""
    language, width, visual = adapter_for(model).language_model, prompt.embeds.shape[1], set(prompt.visual)
    depth = len(language.layers)
    inside_contiguous = (method.inside_positions or positions) == "contiguous"
    at_stage = {layer: chosen for layer, _, chosen in trace.stages}
    key_layer = method.key_layer(depth)
    made: list[int] = []
    logits: list[Tensor] = []
    for step in range(steps):
        new = model.get_input_embeddings()(torch.tensor([made], dtype=torch.long))
        x = torch.cat([prompt.embeds, new], dim=1)
        ids = torch.cat([prompt.ids, prompt.ids[..., -1:] + 1 + torch.arange(step)], dim=-1)
        length = x.shape[1]

        def order(body: list[int], places: list[int], length: int = length) -> list[int]:
            """All columns that are left, as they follow one another: `body` stands in `places`."""
            place = dict(zip(places, body, strict=True))
            return [place.get(c, c) for c in range(length) if c in place or c not in visual]

        def seen_by(body: list[int], places: list[int], length: int = length, order: Any = order) -> Tensor:
            """Which column sees which, when only `body` is left of the visual columns: [S, S] bool."""
            rank = torch.full((length,), length)
            rank[order(body, places)] = torch.arange(len(order(body, places)))
            seen = rank[None, :] <= rank[:, None]
            seen[:, rank == length] = False
            return seen | torch.eye(length, dtype=torch.bool)

        first = trace.pruned[0]
        body = torch.tensor(prompt.visual)[first.positions].tolist()
        x[0, body] = first.features.to(x.dtype)
        places = sorted(body)
        if positions == "contiguous" and len(body) < len(visual):
            ids = closed(ids, order(body, places))
        everywhere, weights = (body, places), torch.zeros(length)
        for _, chosen in sorted(at_stage.items()):
            everywhere = _chosen(*everywhere, chosen.index.tolist())
        for number, layer in enumerate(language.layers):
            if number in at_stage and not method.before_mlp:
                body, places = _chosen(body, places, at_stage[number].index.tolist())
                x = _changed(x, body, at_stage[number])
                if (sizes := at_stage[number].sizes) is not None:
                    weights[body] = sizes.float().log()
                if inside_contiguous:
                    ids = closed(ids, order(body, places))
            seen = seen_by(body, places)
            if method.prunes_caches and number < max(at_stage, default=0):
                seen[width:] = seen_by(*everywhere)[width:]  # caches were pruned after the prompt went through
            if key_layer is not None and number >= key_layer:
                for i, keys in enumerate(trace.keys[:step]):
                    if keys is not None:
                        hidden = torch.ones(len(body), dtype=torch.bool)
                        hidden[keys] = False
                        seen[width + i, torch.tensor(body)[hidden]] = False
            mask = weights.expand(1, 1, length, length).masked_fill(~seen, torch.finfo(torch.float32).min)
            rotary = language.rotary_emb(x, ids)
            if number + 1 in at_stage and method.before_mlp:
                x = x + _attended(layer, x, mask, rotary)
                body, places = _chosen(body, places, at_stage[number + 1].index.tolist())
                x = _changed(x, body, at_stage[number + 1])
                if inside_contiguous:
                    ids = closed(ids, order(body, places))
                x = x + _transformed(layer, x)
            else:
                x = layer(x, attention_mask=mask, position_embeddings=rotary)
            if number < len(prompt.additions):
                x = torch.cat([x[:, :width] + prompt.additions[number], x[:, width:]], dim=1)
        logits.append(model.lm_head(language.norm(x))[0, -1])
        made.append(int(logits[-1].argmax()))
    return torch.stack(logits)
