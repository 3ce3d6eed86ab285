"""Pruning between the layers of an unmodified language model, by hooks on its decoder layers.

A layer at which the method prunes receives only the kept rows of its hidden states. This layer and all later ones are
called with the masks and rotary embeddings of the kept tokens. Keys and values of earlier layers stay whole, unless the
method prunes them too. While decoding, the columns that a layer never saw are removed from its mask.

A method may also prune in the middle of the previous layer, after its attention: the MLP then receives the kept rows,
and the result replaces the layer's output.

If the layers are spread over several devices, each stage works on the device of its layer, and all tensors are sent
there.

No layer gets position ids: the rotary embeddings contain all that is needed, and attention kernels would treat a jump
in the ids as the border between two packed sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers.masking_utils import create_causal_mask

from mmg_bench.contract import Faults, check_selection
from mmg_bench.methods.base import Method, Positions
from mmg_bench.models.adapter import Adapter
from mmg_bench.models.attend import Attend, device_of, unhooked
from mmg_bench.models.attention import LayerAttention, softmax_weights
from mmg_bench.models.caches import CACHE, cache_of, held
from mmg_bench.models.kept import Kept
from mmg_bench.models.prompt import Prompt, Span, moved
from mmg_bench.tokens import LayerTokens

Part = TypeVar("Part", Span, "Flow", Kept)
Given = TypeVar("Given")
Left = TypeVar("Left")


def weighed(causal: Tensor | None, weights: Tensor, hidden: Tensor) -> Tensor:
    """A mask `[B, 1, q, S]` to add to attention scores, with `weights` `[B, S]` where it hides nothing.

    `causal`: the mask without weights, boolean (SDPA) or additive (eager); None: plain causal masking.
    `hidden` `[B, q, D]`: the hidden states that the mask is for.
    """
    length, whole = hidden.shape[1], weights.shape[1]
    if causal is None:
        column = torch.arange(whole, device=weights.device)
        causal = column <= column[whole - length :, None]
    elif causal.dtype != torch.bool:
        causal = causal == 0
    lowest = torch.finfo(hidden.dtype).min
    return weights.to(hidden.dtype)[:, None, None].masked_fill(~causal, lowest)


@dataclass(frozen=True)
class Flow:
    """The arguments of decoder layers other than hidden states."""

    mask: Tensor  # [B, columns seen] 2-D attention mask
    ids: Tensor  # [..., B, q] position ids
    rotary: Any = None  # rotary embeddings, as the model makes them of `ids`; known once a layer is called
    causal: Any = None  # the mask as the attention implementation wants it
    weights: Tensor | None = None  # [B, columns seen] added to the attention scores of each column; None: nothing


class Inside:
    """The hooks on the decoder layers, and the state that one prompt and its decoding share."""

    def __init__(
        self,
        adapter: Adapter,
        method: Method,
        positions: Positions,
        report: Callable[[int, int, Tensor], None],
        look_over: Callable[[Faults], None],
    ) -> None:
        """`report(video, layer, positions)` is called with what is left of each video, copies included, at each stage.

        `look_over` is called with the faults to check in it.
        """
        self.adapter, self.method, self.report, self.look_over = adapter, method, report, look_over
        self.contiguous = (method.inside_positions or positions) == "contiguous"
        self.at, self.key_layer = adapter.stages(method)
        self.needed = bool(self.at) or self.key_layer is not None  # whether the method does anything here
        places = {place for layer in adapter.layers if (place := device_of(layer))} if self.needed else set()
        self.spread = len(places) > 1  # on several devices
        self.prompt = Prompt(0, None, [])  # of the current forward call
        self.base: Flow | None = None  # of the current forward call, before the first stage
        self.flow: Flow | None = None  # in force at the current layer, once it differs from the base
        self.prefill = False
        self.reached = False  # whether the current forward call reached the layers, if it has anything to do there
        self.additions: list[Tensor] = []  # [B, K, D] to add after each of the first layers at prefill
        self.inputs: dict[int, tuple[Tensor, Any]] = {}  # layer -> its attention's hidden states and rotary embeddings
        self.entered: Tensor | None = None  # `[B, S, D]` input of the current layer, if a method reads it
        self.residual: Tensor | None = None  # `[B, K, D]` that a pruned layer's MLP adds to, then the layer's output

    def install(self, stack: ExitStack) -> None:
        """Register the hooks; `stack` removes them."""
        sources = {layer - 1 for layer in self.at} | ({self.key_layer - 1} if self.key_layer is not None else set())
        for number, layer in enumerate(self.adapter.layers):
            if number in sources:
                attention = self.adapter.attention_module(layer)
                stack.callback(attention.register_forward_pre_hook(self._note(number), with_kwargs=True).remove)
            stack.callback(layer.register_forward_pre_hook(self._narrow(number), with_kwargs=True).remove)
            if number:  # before all other hooks, which must see the layer's actual input
                stack.callback(layer.register_forward_pre_hook(self._add(number - 1), prepend=True).remove)
            if number == len(self.adapter.layers) - 1:
                stack.callback(layer.register_forward_hook(self._add_last).remove)
            if self.method.before_mlp and number + 1 in self.at:
                norm, mlp = self.adapter.mlp(layer)
                stack.callback(norm.register_forward_pre_hook(self._split(number + 1)).remove)
                stack.callback(mlp.register_forward_hook(self._rejoin).remove)
                # before all other hooks, which would otherwise see the placeholder output
                stack.callback(layer.register_forward_hook(self._replace, prepend=True).remove)

    def begin(self, prompt: Prompt, mask: Tensor, ids: Tensor, additions: list[Tensor], prefill: bool) -> None:
        """A forward call of the language model begins."""
        self.prompt, self.additions, self.prefill = prompt, additions, prefill
        self.base, self.flow, self.residual, self.entered = Flow(mask, ids), None, None, None
        self.reached = not self.needed and not additions  # recorded launches run no hooks, and then need none
        self.inputs.clear()

    def stop(self) -> None:
        """The next forward call contains no pruned video."""
        self.base = self.flow = self.residual = self.entered = None
        self.additions, self.reached = [], True
        self.inputs.clear()

    def settle(self, prompt: Prompt, device: torch.device) -> None:
        """Before decoding: stages that also pruned the caches of earlier layers take effect from layer 0 on.

        `device`: the device of layer 0.
        """
        if self.method.prunes_caches:
            for stage in prompt.stages:
                stage = self._sent(stage, device)
                prompt.kept = stage if prompt.kept is None else stage.after(prompt.kept)
            prompt.stages = []

    def _prunes_at(self, number: int) -> bool:
        """Whether this is the prefill of a prompt with a video that is pruned before layer `number`."""
        return (
            self.base is not None
            and self.prefill
            and number in self.at
            and not all(self.method.finished(span.state) for span in self.prompt.spans)
        )

    def _note(self, number: int) -> Any:
        """Forward pre-hook of an attention module: keep its arguments if the next layer will need them."""

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            decoding = self.base is not None and not self.prefill
            if self._prunes_at(number + 1) or (decoding and number + 1 == self.key_layer):
                hidden = args[0] if args else kwargs["hidden_states"]
                self.inputs[number] = hidden.detach(), kwargs["position_embeddings"]

        return hook

    def _narrow(self, number: int) -> Any:
        """Forward pre-hook of a decoder layer: prune if the method prunes here, and pass on what is left."""

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self.base is None:
                return None
            self.reached = True
            hidden, cache = args[0], cache_of(kwargs)
            if self.spread and (place := device_of(module)):
                hidden = hidden.to(place)
            if self.base.rotary is None:
                self.base = replace(self.base, rotary=kwargs.get("position_embeddings"))
            if self._prunes_at(number):
                if not self.method.before_mlp:
                    hidden = self._prune(number, hidden, cache)
                elif self.at.index(number) == len(self.prompt.stages):  # nothing was pruned in the previous layer
                    raise unhooked(self.method)
            if self._prunes_at(number + 1):
                twice = module.training and getattr(module, "gradient_checkpointing", False) and torch.is_grad_enabled()
                if self.method.before_mlp and twice:
                    raise ValueError(
                        f"{self.method.name} prunes within layers, but gradient checkpointing runs them again "
                        "without pruning: call model.gradient_checkpointing_disable()"
                    )
                self.entered = hidden.detach()
            if not self.prefill and number in self.at and (stage := self.at.index(number)) < len(self.prompt.stages):
                self._advance(self.prompt.stages[stage], hidden, cache, number)
            if number == self.key_layer and not self.prefill and hidden.shape[1] == 1:
                self._hide_keys(number, hidden, cache)
            changed: dict[str, Any] = {"position_ids": None}
            if self.flow is not None:
                changed |= {"attention_mask": self.flow.causal, "position_embeddings": self.flow.rotary}
            return (hidden, *args[1:]), {**kwargs, **changed}

        return hook

    def _split(self, number: int) -> Any:
        """Forward pre-hook of the norm before an MLP: prune if the method prunes here, and pass on what is left."""

        def hook(module: Any, args: tuple[Any, ...]) -> Any:
            if not self._prunes_at(number):
                return None
            self.residual = self._prune(number, args[0], None)  # the cache holds nothing of later layers yet
            return (self.residual, *args[1:])

        return hook

    def _rejoin(self, module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Forward hook of an MLP: add its output to the rows that are left, as the layer would for all rows."""
        if self.residual is None:
            return None
        self.residual = self.residual + output
        return output.new_zeros(1, 1, 1)  # for the layer to add to all rows, which are not used any more

    def _replace(self, module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of a decoder layer: replace its output if it was pruned before its MLP."""
        left, self.residual = self.residual, None
        return output if left is None else left

    def _add(self, number: int) -> Any:
        """Forward pre-hook of the layer after layer `number`: add what the language model would have added there.

        This is not a hook of layer `number` itself: its recorded output (hidden states) does not include the addition.
        """

        def hook(module: Any, args: tuple[Any, ...]) -> Any:
            return (self._added(number, args[0]), *args[1:]) if self.additions else None

        return hook

    def _add_last(self, module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of the last decoder layer: the same, as no layer follows it."""
        return self._added(len(self.adapter.layers) - 1, output)

    def _added(self, number: int, hidden: Tensor) -> Tensor:
        """The output of layer `number`, `[B, K, D]`, plus what the language model would have added after it."""
        if number >= len(self.additions):
            return hidden
        return hidden + self.additions[number].to(hidden.device, hidden.dtype)

    def _prune(self, number: int, hidden: Tensor, cache: Any) -> Tensor:
        """Prune every video before layer `number`, or before the MLP before it: the kept hidden states `[B, K, D]`."""
        assert self.entered is not None
        current = self._current(hidden.device)
        left = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        counts = [hidden.shape[1]] * len(hidden)
        source = torch.arange(hidden.shape[1], device=hidden.device).repeat(len(hidden), 1)
        values, after = hidden.clone(), []
        weights = current.weights if current.weights is None else current.weights.clone()
        stage, depth = self.at.index(number), len(self.adapter.layers)
        for span in self.prompt.spans:
            span = self._sent(span, hidden.device)
            if self.method.finished(span.state):
                after.append(span)
                continue
            row = hidden[span.row]
            before = self.inputs.get(number - 1)
            attend = Attend(self.adapter, self.method, number, span, row, current.mask, current.rotary, before)
            tokens = LayerTokens(
                row[span.columns],
                self.entered[span.row, span.columns.to(self.entered.device)].to(hidden.device),
                span.positions,
                row[span.text],
                span.total,
                stage,
                depth,
                attend,
                span.state,
            )
            chosen = untraced(self.method.prune_inside, tokens)
            self.look_over(check_selection(self.method, tokens, chosen))
            positions = span.positions[chosen.index]
            self.report(span.video, number, positions)
            going = span.columns[chosen.index]
            places = going.sort().values
            left[span.row, span.columns] = False
            left[span.row, places] = True
            counts[span.row] -= len(span.columns) - len(going)
            source[span.row, places] = going
            if chosen.features is not None:
                values[span.row, going] = chosen.features.to(row.dtype)
            if chosen.sizes is not None:
                if weights is None:
                    weights = torch.zeros(hidden.shape[:2], device=hidden.device)
                weights[span.row, going] = chosen.sizes.float().log()
            after.append(replace(span, columns=places, positions=positions, state=chosen.state))
        self.inputs.clear()  # free this memory for later layers
        self.entered = None
        kept = Kept.of(left, counts, self.contiguous, source)
        if weights is not None:
            kept = replace(kept, weights=kept.columns(weights))
        self.prompt.spans = moved(after, left, counts)
        self.prompt.stages.append(kept)
        self.additions = [kept.gather(addition.to(hidden.device)) for addition in self.additions]
        hidden = kept.gather(values)
        self._advance(kept, hidden, cache, number)
        if self.method.prunes_caches and cache is not None:
            for layer in cache.layers[:number]:
                whole = held(layer, left.shape[1], self.method.name)
                index = kept.index.to(layer.keys.device)[:, None, :, None]
                layer.keys, layer.values = (
                    part.gather(2, index.expand(-1, part.shape[1], -1, part.shape[3])) for part in whole
                )
        return hidden

    def _advance(self, kept: Kept, hidden: Tensor, cache: Any, number: int) -> None:
        """From this layer on, narrow what layers see to `kept`; `hidden` is already narrowed."""
        current, kept = self._current(hidden.device), self._sent(kept, hidden.device)
        mask = kept.mask(current.mask)
        if self.prefill:
            self.prompt.stages[-1], ids = kept.numbered(current.ids, mask)
        else:
            ids = kept.later(current.ids)
        self.flow = self._flow(Flow(mask, ids, weights=kept.weights_of(mask)), hidden, cache, number)

    def _flow(self, seen: Flow, hidden: Tensor, cache: Any, number: int) -> Flow:
        """`seen` completed with its rotary embeddings, and the mask as layers expect it."""
        causal = create_causal_mask(
            config=self.adapter.text_config,
            inputs_embeds=hidden,
            attention_mask=seen.mask,
            layer_idx=number,
            **{CACHE: cache},
        )
        if seen.weights is not None:
            causal = weighed(causal, seen.weights, hidden)
        return replace(seen, rotary=self.adapter.rotary(hidden, seen.ids), causal=causal)

    def _current(self, device: torch.device) -> Flow:
        """The flow in force at the current layer, on its device."""
        current = self.flow or self.base
        assert current is not None
        return self._sent(current, device)

    def _sent(self, part: Part, device: torch.device) -> Part:
        """`part` with all tensors on `device`, including those in tuples, lists and dicts of a `state`."""
        if not self.spread:
            return part
        sent = {f.name: tree_map_only(Tensor, lambda x: x.to(device), getattr(part, f.name)) for f in fields(part)}
        return replace(part, **sent)

    def _hide_keys(self, number: int, hidden: Tensor, cache: Any) -> None:
        """For this step, mask from this layer on the visual keys that the method does not choose."""
        inputs, rotary = self.inputs[number - 1]
        current = self._current(inputs.device)
        mask = current.mask.clone()  # [B, S]
        keys, _ = held(cache.layers[number - 1], mask.shape[1], self.method.name)
        keys = keys.to(inputs.device)  # [B, key-value heads, S, width], from the host if offloaded
        module = self.adapter.attention_module(self.adapter.layers[number - 1])
        memory = self.prompt.memory
        for i, span in enumerate(self.prompt.spans):
            span = self._sent(span, inputs.device)
            seen = current.mask[span.row].bool()
            of_row = self.adapter.rows(rotary, span.row)
            one = LayerAttention(module, inputs[span.row], of_row, seen[-1:], self.adapter.interleaved)
            last = torch.zeros(1, dtype=torch.long, device=inputs.device)
            weights = softmax_weights(one.queries(last), keys[span.row], seen[None], module.scaling)  # [heads, 1, S]
            chosen, memory[i] = self.method.select_keys(weights[:, 0, span.columns].mean(0), memory.get(i))
            if chosen is not None:
                shown = mask[span.row, span.columns[chosen]]
                mask[span.row, span.columns] = 0
                mask[span.row, span.columns[chosen]] = shown
        changed = self._sent(replace(current, mask=mask), hidden.device)
        self.flow = self._flow(changed, hidden, cache, number)


@torch.compiler.disable
def untraced(prune: Callable[[Given], Left], tokens: Given) -> Left:
    """Call `prune` untraced, even when torch.compile traces the caller.

    When traced, some methods fail (sttm), and a set of numbers is ordered differently (dart).
    """
    return prune(tokens)
