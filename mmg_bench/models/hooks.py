"""Pruning inside an unmodified transformers model, by hooks on that one instance, all of them removed on exit.

Two of six hooks do the pruning. One before the multimodal module's forward notes the call's `input_ids`, which show
where the visual tokens are (`places.py`). One before the language model's forward takes the kept rows of the prompt at
prefill, and the matching columns of the attention mask at every later step.

The other four support them. The hook before the whole model notes whether labels or drafted tokens come with the
prompt. After the language model, the state that later steps need is attached to the prompt's cache. After the
multimodal module, the call is forgotten. After the whole model, the method's output is validated, and it is checked
that the hooks ran.

These six are methods of `Splice` (`splice.py`). In addition, hooks on the decoder layers (`inside.py`) do the work
needed there, and hooks on the vision tower (`Adapter.capture`) record the necessary data of its calls. The model's own
code does everything else.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ContextDecorator, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

from torch import nn

from mmg_bench.methods.base import Method, Positions, check_choice
from mmg_bench.models.adapter import UnsupportedModelError, adapter_for
from mmg_bench.models.run import Run
from mmg_bench.models.splice import Splice
from mmg_bench.tokens import VideoTokens

_ACTIVE: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_LOCK = threading.Lock()  # guards _ACTIVE


def pruning(
    model: Any,
    method: Method,
    positions: Positions | None = None,
    encoded: Sequence[VideoTokens] | None = None,
) -> AbstractContextManager[Run]:
    """Make `model` prune every video of every prompt with `method` while the context is open.

    `positions` overrides the method's own choice: `original` keeps the position ids that the tokens had in the whole
    prompt, `contiguous` renumbers the rest without gaps. `encoded` are the tokens of the prompt's videos, in order, if
    they were encoded beforehand (`Adapter.encode`); each video is then pruned once for all prompts, unless the method
    reads the question.

    The context may be reopened once it is closed. Opening it raises UnsupportedModelError for a model (or a need of the
    method) that no adapter supports, and RuntimeError if the model is already being pruned.
    """
    return _Pruning(partial(_opened, model, method, positions, encoded))


class _Pruning(ContextDecorator, AbstractContextManager[Run]):
    """A context that can be reopened, for example by a notebook cell that is run twice."""

    def __init__(self, opened: Callable[[], AbstractContextManager[Run]]):
        self._opened = opened

    def __enter__(self) -> Run:
        context = self._opened()
        run = context.__enter__()
        self._context = context  # only now: if opening fails, a context that is already open remains the one to close
        return run

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._context.__exit__(kind, value, trace)


@contextmanager
def _opened(
    model: Any, method: Method, positions: Positions | None, encoded: Sequence[VideoTokens] | None
) -> Iterator[Run]:
    """One opening of the `pruning` context."""
    adapter = adapter_for(model)
    model = adapter.model  # without a wrapper
    adapter.check(method.needs, method.name)
    if encoded is None and "times" in method.needs:
        raise ValueError(
            f"{method.name} reads the times of the video's frames, which a model's inputs do not tell: "
            f"{_without_times(method)}, or encode the video with its timing and pass its tokens as `encoded`"
        )
    try:
        multimodal, language_model = adapter.multimodal, adapter.language_model
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a whole model ({error}): pass the ...ForConditionalGeneration that holds it"
        ) from error
    run = Run(method, positions or method.positions)
    check_choice(run, "positions", ("original", "contiguous"))
    with _LOCK:
        if model in _ACTIVE:
            raise RuntimeError(
                f"{type(model).__name__} is already being pruned: close that context before opening another"
            )
        _ACTIVE.add(model)
    with ExitStack() as stack:
        stack.callback(_release, model)
        captured = stack.enter_context(adapter.capture(method.needs if encoded is None else ()))
        splice = Splice(adapter, run, encoded, captured)
        stack.callback(vars(splice).clear)  # breaks its cycle with `inside`, so that tensors are freed at once
        stack.callback(model.register_forward_pre_hook(splice.note_purpose, with_kwargs=True).remove)
        for module, hook in ((multimodal, splice.locate), (language_model, splice.cut)):
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        stack.callback(language_model.register_forward_hook(splice.remember).remove)
        finish = multimodal.register_forward_hook(splice.finish, with_kwargs=True, always_call=True)
        stack.callback(finish.remove)
        conclude = model.register_forward_hook(splice.conclude, with_kwargs=True, always_call=True)
        stack.callback(conclude.remove)
        splice.inside.install(stack)
        yield run


def _without_times(method: Method) -> str:
    """What to do to run `method` without the times of frames."""
    for part in (method, *method.parts):
        for options in type(part).stand_ins:
            if "times" in part.needs and "times" not in replace(part, **options).needs:
                return f"use {part.name} with {' and '.join(f'{option}={value}' for option, value in options.items())}"
    return "choose another method"


def _release(model: nn.Module) -> None:
    with _LOCK:
        _ACTIVE.discard(model)
