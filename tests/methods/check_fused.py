"""Compare the fused form of TG-DPC with the step-by-step one, on the device named: run by test_mmg_vid.py.

python check_fused.py cuda
TRITON_INTERPRET=1 python check_fused.py cpu      # the kernel's own code, run by Triton's interpreter
"""

import sys

import torch

from mmg_bench.methods._distances_triton import gram_distances
from mmg_bench.methods._ops import RESOLUTION, distances_of_gram, frame_distances, frame_means
from mmg_bench.methods.mmg_vid import Chosen, temporal_dpc

CASES = {
    # frames, tokens, width, segments, tokens kept of each frame
    "one segment": (5, 20, 24, [(0, 5)], [5] * 5),
    "ragged segments": (9, 13, 40, [(0, 1), (1, 6), (6, 9)], [3, 4, 4, 3, 2, 1, 5, 5, 13]),
    "frames without budget": (6, 12, 16, [(0, 3), (3, 6)], [0, 4, 2, 3, 0, 5]),
    "a segment without budget": (4, 10, 8, [(0, 2), (2, 4)], [0, 0, 3, 2]),
    "one token a frame": (4, 1, 8, [(0, 4)], [1, 0, 1, 1]),
    "one channel": (3, 9, 1, [(0, 3)], [2, 2, 2]),
    "a segment a frame": (6, 16, 20, [(t, t + 1) for t in range(6)], [4] * 6),
}
LARGE = {"a video": (32, 196, 512, [(0, 3), (3, 20), (20, 32)], [49] * 32)}


def features(kind: str, frames: int, tokens: int, width: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(width, generator=g) + torch.randn(frames, tokens, width, generator=g)
    if kind == "identical frames":
        x = x[:1].expand(frames, -1, -1).contiguous()
    if kind == "repeated tokens":
        x = x[:, torch.randint(0, tokens, (tokens,), generator=g)]
    return torch.zeros_like(x) if kind == "zeros" else x


def compare(plain: Chosen, fused: Chosen, squared: torch.Tensor, segments: list[tuple[int, int]], where: str) -> None:
    """The same tokens, or others of the same score up to rounding, behind which the rest of a segment may differ."""
    assert torch.equal(fused.positions, fused.kept.flatten().nonzero().squeeze(1)), where
    assert fused.kept.sum() == plain.kept.sum(), where
    for start, stop in segments:
        for t in range(start, stop):
            torch.testing.assert_close(fused.density[t], plain.density[t], rtol=1e-4, atol=1e-6, msg=where)
            close = torch.isclose(fused.distance[t], plain.distance[t], rtol=1e-4, atol=1e-6)
            # delta jumps to another neighbour where two densities all but tie; those of equal tokens do tie in both
            rho = plain.density[t]
            rivals = torch.isclose(rho, rho[:, None], rtol=1e-4, atol=1e-6) & (squared[t] > 0)  # [N, N]
            assert (close | rivals.any(1)).all(), f"{where}: frame {t}, distance"
            other = plain.kept[t] != fused.kept[t]
            if other.any():
                if not close[other].all():
                    break
                scores = (plain.density[t].log() + plain.distance[t].log())[other]
                assert scores.max() - scores.min() < 1e-5, f"{where}: frame {t}, {other.nonzero().tolist()}"
                break


def main(device: str) -> None:
    checked = 0
    for name, (frames, tokens, width, segments, counts) in (CASES | (LARGE if device != "cpu" else {})).items():
        for kind in ("random", "identical frames", "repeated tokens", "zeros"):
            dtypes = (torch.float32, torch.bfloat16, torch.float16)
            # each is a kernel of its own to make, and the interpreter is slow: one after the other
            for dtype in dtypes if name in LARGE else dtypes[checked % 3 :][:1]:
                x = features(kind, frames, tokens, width, seed=checked).to(device, dtype)
                squared = frame_distances(x, frame_means(x))  # the same for both: the device's
                plain, fused = (temporal_dpc(x, segments, counts, squared=squared, fused=f) for f in (False, True))
                where = f"{name}, {kind}, {dtype}"
                compare(plain, fused, squared, segments, where)
                gram = x.float() @ x.float().mT
                distances = gram_distances(gram, width, RESOLUTION)
                torch.testing.assert_close(distances, distances_of_gram(gram) / width, rtol=0, atol=0, msg=where)
                checked += 1
    print(f"{checked} cases agree")


if __name__ == "__main__":
    main(sys.argv[1])
