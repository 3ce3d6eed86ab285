"""Train the embedded model: a small LLaVA-OneVision on the embedded benchmark's train split.

    python scripts/train_embedded.py                 # train, or resume
    python scripts/train_embedded.py --export DIR    # write the checkpoint folder of the last state

Three things make two CPU cores enough. The vision tower is first trained alone, on what each visual token shows (shape,
colour, position). Many questions follow each video in one sequence, where a question sees only the video and itself.
And videos grow from 4 to 16 frames. Auxiliary losses get the language model off its plateaus. A linear probe on the
visual tokens of a middle layer predicts which way each object moves and where it came from. The model's own head must
read those tokens as the words for what they show, and a question's word for a colour as the words for the object that
has it. Probes are dropped on export. Training uses no pruning.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from mmg_bench.benchmarks.embedded.questions import POST_PROMPT, sample_questions, vocabulary
from mmg_bench.benchmarks.embedded.render import coverage, render_frames
from mmg_bench.benchmarks.embedded.world import COLOURS, DIRECTIONS, SHAPES, STRIDE, World, make_rng, make_world
from mmg_bench.models.small import SmallSpec, small_llava_onevision

ROOT = Path(__file__).resolve().parent
SPEC = SmallSpec()
GRID = SPEC.image_size // SPEC.patch_size // 2  # visual tokens per side
KINDS = ("none", *SHAPES, "star")
HUES = ("none", *COLOURS)
WAYS = ("none", *DIRECTIONS)
PROBED_LAYER = 2  # visual tokens are probed after this many layers of the language model,
BINDING_LAYER = 3  # the words of a question after this many
IGNORE = -100


@dataclass(frozen=True)
class Stage:
    name: str
    steps: int
    batch: int
    frames: int
    questions: int
    train: list[str]
    lr: float
    motion: float = 1.0
    words: float = 0.0
    binding: float = 0.0
    hide: float = 0.0
    floor: float = 0.3


# --------------------------------------------------------------------------------------------------- data


def token_labels(world: World, frames: list[int]) -> dict[str, np.ndarray]:
    """What each visual token shows: class indices `kind`, `hue`, `way` `[T, N]`, its object's centre `place [T, N, 2]`,
    and `origin [T, N, 2]`, where that object entered the scene."""
    shape = (len(frames), GRID, GRID)
    labels = {key: np.zeros(shape, dtype=np.int64) for key in ("kind", "hue", "way")}
    place, origin = np.zeros((2, *shape, 2), dtype=np.float32)
    cell = SPEC.image_size // GRID
    for t, frame in enumerate(frames):
        best = np.full((GRID, GRID), 0.12, dtype=np.float32)  # a token shows an object that covers an eighth of it
        scene = world.scene_at(frame)
        now = scene.progress(frame)
        items = [(m.shape, m.colour, m.centre(now), m.radius, m.direction, m.start) for m in scene.movers]
        flashes = [f for f in world.flashes if f.first <= frame <= f.last]
        items += [("star", f.colour, f.centre, f.radius, "none", f.centre) for f in flashes]
        for kind, hue, centre, radius, way, start in items:
            rows, columns, alpha = coverage(kind, centre, radius, SPEC.image_size)
            full = np.zeros((SPEC.image_size, SPEC.image_size), dtype=np.float32)
            full[rows, columns] = alpha
            share = full.reshape(GRID, cell, GRID, cell).mean(axis=(1, 3))
            here = share > best
            best[here] = share[here]
            labels["kind"][t][here] = KINDS.index(kind)
            labels["hue"][t][here] = HUES.index(hue)
            # a scene's first frame does not show the direction
            labels["way"][t][here] = WAYS.index(way) if frame - scene.first >= STRIDE else IGNORE
            place[t][here], origin[t][here] = centre, start
    flat = {key: value.reshape(len(frames), -1) for key, value in labels.items()}
    return {**flat, "place": place.reshape(len(frames), -1, 2), "origin": origin.reshape(len(frames), -1, 2)}


class Videos(IterableDataset):
    """An endless stream of the train split's videos, with token labels and questions; it can start at any video."""

    def __init__(self, stage: Stage, first: int, noise: float):
        self.stage, self.first, self.noise = stage, first, noise

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        start, step = (worker.id, worker.num_workers) if worker else (0, 1)
        index = self.first + start
        while True:
            yield make_example("train", index, self.stage, self.noise)
            index += step


def make_example(split: str, index: int, stage: Stage, noise: float) -> dict[str, Any]:
    rng = make_rng(split, index, stream=2)
    world = make_world(split, index, max(stage.frames, 4))
    frames = list(range(0, world.frames, STRIDE))
    if not stage.questions:  # single frames from longer videos
        world = make_world(split, index)
        frames = sorted(rng.choice(world.frames, size=stage.frames, replace=False).tolist())
    pixels = render_frames(world, frames, SPEC.image_size).astype(np.float32)
    if noise:
        pixels += rng.normal(0, rng.uniform(0, noise), size=pixels.shape).astype(np.float32)
        pixels = pixels * rng.uniform(0.93, 1.07) + rng.uniform(-6, 6)
    questions = sample_questions(world, stage.questions, make_rng(split, index, stream=1))
    pixels = torch.from_numpy(np.clip(pixels, 0, 255).astype(np.uint8)).permute(0, 3, 1, 2)
    named = {m.colour: (m.shape, m.direction) for m in world.movers}
    return {"pixels": pixels, "questions": questions, "named": named, **token_labels(world, frames)}


def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
    batch: dict[str, Any] = {key: [e[key] for e in examples] for key in ("questions", "named")}
    batch["pixels"] = torch.stack([e["pixels"] for e in examples])
    for key in ("kind", "hue", "way", "place", "origin"):
        batch[key] = torch.from_numpy(np.stack([e[key] for e in examples]))
    return batch


# -------------------------------------------------------------------------------------------------- model


class Trainee(nn.Module):
    """The model to export, and the probes, which are discarded."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.processor = small_llava_onevision(vocabulary(), SPEC)
        # same results; on a CPU, the fused kernel is slower for such short sequences
        self.model.model.vision_tower.set_attn_implementation("eager")
        width = SPEC.text_width
        self.probe = nn.Linear(width, len(KINDS) + len(HUES) + 2)
        self.motion_probe = nn.Linear(width, len(WAYS) + 2)
        template = self.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "@"}]}],
            add_generation_prompt=True,
        )
        self.register_buffer("names", self.word_ids(), persistent=False)
        before, after = template.split("@")
        self.head, self.middle = before.split("<video>")
        self.tail = after

    def parts(self) -> dict[str, nn.Module]:
        inner = self.model.model
        return {
            "vision": inner.vision_tower,
            "projector": inner.multi_modal_projector,
            "language": inner.language_model,
        }

    def word_ids(self) -> Tensor:
        """Token ids of the names of kinds, hues and ways, `[3, classes]`; IGNORE for "none" and as padding."""
        rows = [
            [IGNORE, *self.processor.tokenizer.convert_tokens_to_ids(list(names[1:]))] for names in (KINDS, HUES, WAYS)
        ]
        return torch.tensor([row + [IGNORE] * (max(map(len, rows)) - len(row)) for row in rows])

    def ids(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def features(self, pixels: Tensor) -> Tensor:
        """Visual tokens and newline `[B, T*N + 1, D]` of uint8 videos `[B, T, 3, H, W]`, from the stock class."""
        return self.model.model.get_video_features(pixels.float() / 127.5 - 1).pooler_output

    def tower_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        tokens = self.features(batch["pixels"])[:, :-1].float()
        kind, hue, place = self.probe(tokens).split([len(KINDS), len(HUES), 2], dim=-1)
        truth = {k: batch[k].flatten(1, 2) for k in ("kind", "hue", "place")}
        shown = truth["kind"] > 0
        # most tokens show only background: objects get a larger weight
        weight = torch.where(shown, 1.0, 0.15)
        losses = [
            F.cross_entropy(x.transpose(1, 2), truth[k], reduction="none") for x, k in ((kind, "kind"), (hue, "hue"))
        ]
        loss = sum((x * weight).sum() / weight.sum() for x in losses)
        loss = loss + 5 * F.smooth_l1_loss(place[shown], truth["place"][shown], beta=0.1)
        stats = {
            "shape": (kind.argmax(-1) == truth["kind"])[shown].float().mean().item(),
            "colour": (hue.argmax(-1) == truth["hue"])[shown].float().mean().item(),
            "background": (kind.argmax(-1) == 0)[~shown].float().mean().item(),
            "place": (place - truth["place"])[shown].abs().mean().item(),
        }
        return loss, stats

    def sequence(self, features: Tensor, batch: dict[str, Any], hide: float = 0.0) -> dict[str, Tensor]:
        """Input embeddings, position ids, an additive mask and targets of videos followed by their questions.

        `bound` `[B, S, 2]`: at a question's word for a colour, the words for its object's shape and direction.
        `hide`: share of the questions whose answer does not see the video itself, only the question's words.
        """
        questions, tokenizer = batch["questions"], self.processor.tokenizer
        device, visual = features.device, features.shape[1]
        prefix = self.ids(self.head)
        shared = len(prefix) + visual
        blocks, bound = [], []  # per video: token ids, targets, positions, block numbers, who is blind
        for video, named in zip(questions, batch["named"], strict=True):
            ids, targets, positions, owner, blind = [], [], [], [], []
            means = {
                tokenizer.convert_tokens_to_ids(k): tokenizer.convert_tokens_to_ids(list(v)) for k, v in named.items()
            }
            for number, q in enumerate(video, start=1):
                ask = self.ids(f"{self.middle}{q.text} {POST_PROMPT}{self.tail}")
                reply = self.ids(f"{q.answer}<|im_end|>")
                whole = ask + reply
                ids += whole[:-1]
                targets += [IGNORE] * (len(ask) - 1) + reply
                positions += list(range(shared, shared + len(whole) - 1))
                owner += [number] * (len(whole) - 1)
                tail = len(self.ids(self.tail)) + len(reply) - 1
                hidden = int(torch.rand(()) < hide)
                blind += [0] * (len(whole) - 1 - tail) + [hidden] * tail
            blocks.append((ids, targets, positions, owner, blind))
            bound.append(
                [means.get(i, [IGNORE] * 2) if t == IGNORE else [IGNORE] * 2 for i, t in zip(ids, targets, strict=True)]
            )
        longest = max(len(b[0]) for b in blocks)

        def padded(column: int, fill: int) -> Tensor:
            return torch.tensor([b[column] + [fill] * (longest - len(b[column])) for b in blocks], device=device)

        ids, targets, positions, owner = padded(0, 0), padded(1, IGNORE), padded(2, 0), padded(3, -1)
        embed = self.model.get_input_embeddings()
        batch = len(questions)
        head = embed(torch.tensor(prefix, device=device)).expand(batch, -1, -1)
        embeds = torch.cat([head, features.to(head.dtype), embed(ids)], dim=1)
        start = torch.arange(shared, device=device).expand(batch, -1)
        owner = torch.cat([torch.zeros_like(start), owner], dim=1)
        length = owner.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        same = (owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == 0)
        seen = causal & same  # [B, S, S]
        if hide:
            blind = torch.cat([torch.zeros_like(start), padded(4, 0)], dim=1).bool()
            seen[:, :, len(prefix) : shared] &= ~blind[:, :, None]
        mask = torch.zeros(batch, 1, length, length, device=device)
        mask.masked_fill_(~seen[:, None], torch.finfo(torch.float32).min)
        return {
            "inputs_embeds": embeds,
            "position_ids": torch.cat([start, positions], dim=1),
            "attention_mask": mask,
            "targets": targets,
            "bound": torch.tensor([b + [[IGNORE] * 2] * (longest - len(b)) for b in bound], device=device),
            "shared": torch.tensor(shared),
        }

    def lens(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of words that the model's own head gives for hidden states."""
        return self.model.lm_head(self.model.model.language_model.norm(hidden)).float().log_softmax(-1)

    def word_loss(self, hidden: Tensor, batch: dict[str, Any]) -> Tensor:
        """Cross-entropy of the model's head reading visual tokens `[B, T*N, D]` as the words for what they show."""
        truth = [batch[key].flatten(1, 2) for key in ("kind", "hue", "way")]
        shown = truth[0] > 0
        logits = self.lens(hidden[shown])
        losses = []
        for names, labels in zip(self.names, truth, strict=True):
            target = names[labels[shown].clamp(min=0)]
            losses.append(F.nll_loss(logits, target, ignore_index=IGNORE))
        return torch.stack(losses).mean()

    def answer_loss(self, batch: dict[str, Any], stage: Stage) -> tuple[Tensor, dict[str, float]]:
        features = self.features(batch["pixels"])
        seq = self.sequence(features, batch, stage.hide)
        out = self.model.model.language_model(
            inputs_embeds=seq["inputs_embeds"],
            position_ids=seq["position_ids"],
            attention_mask=seq["attention_mask"],
            use_cache=False,
            output_hidden_states=True,
        )
        shared = int(seq["shared"])
        logits = self.model.lm_head(out.last_hidden_state[:, shared:]).float()
        loss = F.cross_entropy(logits.flatten(0, 1), seq["targets"].flatten(), ignore_index=IGNORE)
        visual = out.hidden_states[PROBED_LAYER][:, shared - features.shape[1] : shared - 1]
        way, origin = self.motion_probe(visual.float()).split([len(WAYS), 2], dim=-1)
        truth = batch["way"].flatten(1, 2)
        weight = torch.tensor([0.1] + [1.0] * len(DIRECTIONS), device=way.device)
        aux = F.cross_entropy(way.flatten(0, 1), truth.flatten(), weight=weight, ignore_index=IGNORE)
        moving = truth > 0
        start = F.smooth_l1_loss(origin[moving], batch["origin"].flatten(1, 2)[moving], beta=0.1)
        stats = {
            "answer": loss.item(),
            "way": (way.argmax(-1) == truth)[moving].float().mean().item(),
            "origin": (origin - batch["origin"].flatten(1, 2))[moving].abs().mean().item(),
        }
        loss = loss + stage.motion * (aux + 5 * start)
        if stage.words:
            words = self.word_loss(visual, batch)
            stats["words"] = words.item()
            loss = loss + stage.words * words
        if stage.binding:
            named = seq["bound"][..., 0] != IGNORE
            read = self.lens(out.hidden_states[BINDING_LAYER][:, shared:][named])
            binding = F.nll_loss(read.repeat_interleave(2, 0), seq["bound"][named].flatten())
            stats["binding"] = binding.item()
            loss = loss + stage.binding * binding
        if "vision" in stage.train:
            tower, _ = self.tower_loss(batch)
            loss = loss + 0.1 * tower
        return loss, stats

    @torch.no_grad()
    def accuracy(self, stage: Stage, videos: int, device: str) -> dict[str, float]:
        """Share of validation questions, per skill, whose answer is the most likely next token."""
        right: dict[str, list[bool]] = {}
        for first in range(0, videos, 8):
            examples = [make_example("validation", i, stage, noise=0.0) for i in range(first, min(first + 8, videos))]
            batch = to_device(collate(examples), device)
            seq = self.sequence(self.features(batch["pixels"]), batch)
            targets, shared = seq["targets"], int(seq["shared"])
            inputs = {k: seq[k] for k in ("inputs_embeds", "position_ids", "attention_mask")}
            hidden = self.model.model.language_model(**inputs, use_cache=False).last_hidden_state[:, shared:]
            guess = self.model.lm_head(hidden).argmax(-1)
            for row, video in enumerate(batch["questions"]):
                at = (targets[row] != IGNORE).nonzero().flatten()[::2]  # the answer, not the end of the turn
                for q, position in zip(video, at.tolist(), strict=True):
                    right.setdefault(q.skill, []).append(bool(guess[row, position] == targets[row, position]))
        scores = {skill: sum(x) / len(x) for skill, x in right.items()}
        return {**scores, "mean": sum(scores.values()) / len(scores)}


def to_device(batch: dict[str, Any], device: str) -> dict[str, Any]:
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


# ----------------------------------------------------------------------------------------------- training


def learning_rate(stage: Stage, step: int, warmup: int) -> float:
    """Linear warm-up, then a cosine down to the stage's `floor`, a share of its rate."""
    warmup = min(warmup, stage.steps // 5)
    if step < warmup:
        return stage.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, stage.steps - warmup)
    return stage.lr * (stage.floor + (1 - stage.floor) * 0.5 * (1 + math.cos(math.pi * done)))


def train(config: dict[str, Any], folder: Path, device: str) -> Trainee:
    torch.manual_seed(config["seed"])
    stages = [Stage(**s) for s in config["stages"]]
    trainee = Trainee().to(device)
    # a CPU without bfloat16 instructions emulates them, at a twentieth of float32's speed
    precision = getattr(torch, config["precision"])
    mixed = torch.autocast(device.split(":")[0], dtype=precision, enabled=precision != torch.float32)
    log = folder / "log.jsonl"
    state_file = folder / "state.pt"
    done = {"stage": 0, "step": 0, "video": 0, "seconds": 0.0}
    state = torch.load(state_file, weights_only=True, map_location=device) if state_file.exists() else None
    if state:
        trainee.load_state_dict(state["weights"])
        done = state["done"]
    started = time.perf_counter() - done["seconds"]

    def write(**row: Any) -> None:
        row["seconds"] = round(time.perf_counter() - started, 1)
        with log.open("a") as f:
            f.write(json.dumps(row) + "\n")
        print(row, flush=True)

    for number, stage in enumerate(stages):
        if number < done["stage"]:
            continue
        for name, part in trainee.parts().items():
            part.requires_grad_(name in stage.train)
        trainee.model.model.image_newline.requires_grad_("language" in stage.train)
        parameters = [p for p in trainee.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=stage.lr, betas=(0.9, 0.98), weight_decay=config["weight_decay"])
        if state and done["step"]:
            optimizer.load_state_dict(state["optimizer"])
        state = None
        loader = DataLoader(
            Videos(stage, done["video"], config["noise"]),
            batch_size=stage.batch,
            collate_fn=collate,
            num_workers=config["batch_workers"],
            prefetch_factor=3,
        )
        batches = iter(loader)
        while done["step"] < stage.steps:
            batch = to_device(next(batches), device)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(stage, done["step"], config["warmup_steps"])
            with mixed:
                if stage.questions:
                    loss, stats = trainee.answer_loss(batch, stage)
                else:
                    loss, stats = trainee.tower_loss(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, config["grad_clip"])
            optimizer.step()
            done["step"] += 1
            done["video"] += stage.batch
            if done["step"] % 25 == 0 or done["step"] == 5:
                stats = {k: round(v, 4) for k, v in stats.items()}
                write(stage=stage.name, step=done["step"], loss=round(loss.item(), 4), **stats)
            if stage.questions and (done["step"] % config["evaluate_every"] == 0 or done["step"] == stage.steps):
                with mixed:
                    scores = trainee.accuracy(stage, config["evaluate_videos"], device)
                write(stage=stage.name, step=done["step"], validation={k: round(v, 3) for k, v in scores.items()})
            if done["step"] % config["checkpoint_every"] == 0:
                done["seconds"] = time.perf_counter() - started
                save(state_file, trainee, optimizer, done)
        done.update(stage=number + 1, step=0, seconds=time.perf_counter() - started)
        save(state_file, trainee, optimizer, done)
    return trainee


def save(path: Path, trainee: Trainee, optimizer: torch.optim.Optimizer, done: dict[str, Any]) -> None:
    """Write the resumable state; an interruption leaves the previous one."""
    partial = path.with_suffix(".partial")
    torch.save({"weights": trainee.state_dict(), "optimizer": optimizer.state_dict(), "done": done}, partial)
    partial.replace(path)


def export(trainee: Trainee, folder: Path) -> None:
    """Save the model (bfloat16) and its processor as an ordinary checkpoint folder."""
    trainee.model.to(torch.bfloat16).save_pretrained(folder)
    trainee.processor.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded model; a second call continues where it stopped.")
    parser.add_argument("--config", type=Path, default=ROOT / "train_embedded.yaml")
    parser.add_argument("--work", type=Path, default=Path("outputs/train_embedded"), help="checkpoints and log")
    parser.add_argument("--export", type=Path, help="do not train; write the last state to this checkpoint folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.export:
        trainee = Trainee()
        state = torch.load(options.work / "state.pt", weights_only=True, map_location="cpu")
        trainee.load_state_dict(state["weights"])
        export(trainee, options.export)
        print(f"wrote {options.export} (trained {state['done']['seconds'] / 60:.0f} min)")
        return
    train(yaml.safe_load(options.config.read_text()), options.work, options.device)


if __name__ == "__main__":
    main()
