"""The embedded benchmark: deterministic, answerable, balanced, and real H.264."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from decord import VideoReader
from PIL import ExifTags, Image

from mmg_bench.benchmarks.embedded import dataset
from mmg_bench.benchmarks.embedded.questions import COUNTS, SKILLS, all_questions, sample_questions, vocabulary
from mmg_bench.benchmarks.embedded.render import coverage, render_frames, write_video
from mmg_bench.benchmarks.embedded.world import COLOURS, SAMPLED, SHAPES, STRIDE, make_rng, make_world
from mmg_bench.benchmarks.video import Timing, VideoError, pictures, read_clip, read_frames
from mmg_bench.measure.workload import video_file

WORLDS = [make_world("test", i) for i in range(150)]


def test_a_seed_gives_one_video_and_splits_are_disjoint() -> None:
    assert make_world("test", 3) == make_world("test", 3)
    assert len({repr(make_world(split, 3).scenes) for split in ("train", "test", "validation")}) == 3
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        make_world("dev", 0)


def test_scenes_hold_what_the_questions_need() -> None:
    for world in WORLDS:
        sampled = range(0, world.frames, STRIDE)
        assert len(sampled) == SAMPLED
        assert 2 <= len(world.scenes) <= 4
        for scene in world.scenes:
            assert sum(scene.first <= t < scene.end for t in sampled) >= 3
            assert 1 <= len(scene.movers) <= 2
        colours = [m.colour for m in world.movers]
        assert len(set(colours)) == len(colours)
        for flash in world.flashes:  # seen in exactly one sampled frame
            assert sum(flash.first <= t <= flash.last for t in sampled) == 1


def test_answers_are_what_the_video_shows() -> None:
    for world in WORLDS[:40]:
        movers = {m.colour: m for m in world.movers}
        scene_of = {m.colour: i for i, scene in enumerate(world.scenes) for m in scene.movers}
        for q in all_questions(world):
            words = q.text.rstrip("?").replace(",", "").split()
            assert q.answer in q.choices
            if q.skill == "colour":
                assert [m.colour for m in world.movers if m.shape == words[-1]] == [q.answer]
            elif q.skill == "shape":
                assert movers[words[4]].shape == q.answer
            elif q.skill == "direction":
                mover = movers[words[4]]
                end, start = mover.centre(1.0), mover.start
                moved = {"left": start[0] - end[0], "right": end[0] - start[0], "up": start[1] - end[1]}
                moved["down"] = end[1] - start[1]
                assert max(moved, key=moved.__getitem__) == q.answer
            elif q.skill == "order":
                pick = min if "first" in words else max
                assert pick(words[-3], words[-1], key=scene_of.__getitem__) == q.answer
            elif q.skill == "event":
                assert {f.colour for f in world.flashes} == {q.answer}
            elif "star" in words:
                assert COUNTS.index(q.answer) + 1 == len(world.flashes)
            else:
                assert COUNTS.index(q.answer) + 1 == sum(m.shape == words[-1] for m in world.movers)


def test_no_answer_wins_by_being_frequent() -> None:
    answers: dict[str, Counter[str]] = {skill: Counter() for skill in SKILLS}
    for world in WORLDS:
        for q in sample_questions(world, 1, make_rng("test", world.index, 1)):
            answers[q.skill][q.answer] += 1
    chance = {"colour": 6, "shape": 5, "direction": 4, "order": 6, "event": 6, "count": 3}
    for skill, counted in answers.items():
        assert counted.most_common(1)[0][1] / counted.total() < 1 / chance[skill] + 0.2, (skill, counted)


def test_every_word_is_in_the_vocabulary() -> None:
    words = {w.lower() for w in vocabulary()}
    for world in WORLDS:
        for q in all_questions(world):
            text = q.text.replace("?", " ?").replace(",", " ,")
            assert {w.lower() for w in text.split()} <= words
            assert q.answer in words


def test_objects_are_painted_in_their_colour() -> None:
    world = WORLDS[0]
    mover = world.scenes[0].movers[0]
    picture = render_frames(world, [0], 224)[0]
    rows, columns, alpha = coverage(mover.shape, mover.centre(0.0), mover.radius, 224)
    inside = picture[rows, columns][alpha == 1]
    assert len(inside) > 200
    assert (inside == np.array(COLOURS[mover.colour])).all()


@pytest.mark.parametrize("shape", [*SHAPES, "star"])
def test_shapes_stay_within_their_radius(shape: str) -> None:
    rows, columns, alpha = coverage(shape, (0.5, 0.5), 0.25, 100)
    y, x = np.mgrid[rows, columns] + 0.5
    far = np.hypot(x - 50, y - 50) > 25 * 1.3  # corners of a square reach beyond the radius
    assert alpha[far].max(initial=0) == 0
    assert alpha.sum() > 200


def test_the_file_decodes_to_what_was_drawn(tmp_path: Path) -> None:
    world = WORLDS[1]
    write_video(world, tmp_path / "v.mp4")
    frames = read_frames(tmp_path / "v.mp4", SAMPLED)
    assert frames.shape == (SAMPLED, 224, 224, 3)
    drawn = render_frames(world, list(range(0, world.frames, STRIDE)), 224)
    error = np.abs(frames.astype(float) - drawn).mean(axis=(1, 2, 3))
    assert error.max() < 6  # of 255; a frame beside the right one differs by far more at every cut
    assert b"avc1" in (tmp_path / "v.mp4").read_bytes()


def test_a_video_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    contents = set()
    for number in (5, 9, 5, 40, 5, 5):
        write_video(WORLDS[number], tmp_path / "v.mp4")
        if number == 5:
            contents.add((tmp_path / "v.mp4").read_bytes())
    (content,) = contents
    # of this world the macroblock tree gives two files, yet not in every process: so see that it is off, too
    assert b"mbtree=0" in content
    assert b" threads=1 " in content


def test_the_data_set_is_named_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMG_BENCH_CACHE", str(tmp_path))
    dataset.prepare.cache_clear()
    path = dataset.prepare(4)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {r["video"] for r in rows} == {f"test-{i:04d}.mp4" for i in range(4)}
    assert len({r["question_id"] for r in rows}) == len(rows)
    assert dataset.prepare(5).parent != path.parent
    dataset.prepare.cache_clear()
    monkeypatch.setattr(dataset, "VERSION", "another way of drawing")
    assert dataset.prepare(4).parent != path.parent
    dataset.prepare.cache_clear()


def test_unreadable_videos_are_explained(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"gone\.mp4: no such video; put it there .*, or correct its name or folder"):
        read_frames(tmp_path / "gone.mp4", 4)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match=r"empty\.mp4: the file is empty"):
        read_frames(tmp_path / "empty.mp4", 4)
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(VideoError, match=r"text\.mp4: cannot be decoded .*; download it again, use another copy"):
        read_frames(tmp_path / "text.mp4", 4)
    with pytest.raises(ValueError, match="frames=0"):
        read_frames(tmp_path / "text.mp4", 0)


def test_a_video_of_a_width_that_decord_cannot_read_is_explained(tmp_path: Path) -> None:
    for width, read in ((48, False), (96, True)):
        write_video(make_world("test", 0), path := tmp_path / f"{width}.mp4", size=width)
        if read:
            assert read_frames(path, 2).shape == (2, width, width, 3)
        else:
            with pytest.raises(VideoError, match=r"48\.mp4: decord cannot read frames of this width; scale it to 96"):
                read_frames(path, 2)


def test_a_damaged_video_that_was_made_here_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMG_BENCH_CACHE", str(tmp_path))
    (tmp_path / "embedded-0").mkdir()
    path = tmp_path / "embedded-0" / "test-0000.mp4"
    path.write_text("torn")
    with pytest.raises(VideoError, match=r"cannot be decoded .*; delete it; it will be rendered again"):
        read_frames(path, 4)


def test_where_made_data_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMG_BENCH_CACHE", "")  # as if it were not set: not the folder one happens to be in
    assert dataset.cache_folder() == Path.home() / ".cache/mmg_bench"
    (tmp_path / "file").touch()
    monkeypatch.setenv("MMG_BENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"MMG_BENCH_CACHE='.*file': .*file is a file; name another folder"):
        video_file("generated")


def test_processes_that_fill_one_cache_do_not_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    container = av.open
    monkeypatch.setattr(av, "open", lambda name, *a, **k: opened.append(name) or container(name, *a, **k))
    for _ in range(2):  # as two containers do, each with a process of the same number
        write_video(make_world("train", 0, sampled=3), tmp_path / "v.mp4", size=32)
    assert len(set(opened)) == 2
    assert all(Path(name).name.startswith(".v.mp4.") for name in opened)
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


def test_short_videos_repeat_frames(tmp_path: Path) -> None:
    write_video(make_world("train", 0, sampled=3), tmp_path / "v.mp4", size=32)
    frames = read_frames(tmp_path / "v.mp4", 20)
    assert len(frames) == 20
    assert (frames[0] == frames[1]).all() or (frames[1] == frames[2]).all()


def test_frames_a_second(tmp_path: Path) -> None:
    video, folder = tmp_path / "v.mp4", tmp_path / "pictures"
    write_video(make_world("train", 0, sampled=16), video, size=32)
    whole = read_clip(video, 1).timing
    assert whole.fps is not None
    seconds = whole.total / whole.fps
    for fps in (0.01, 1, 2, 2.5, 100):
        clip = read_clip(video, 12, fps)
        assert len(clip.pixels) == len(clip.timing.indices) == min(12, max(4, round(seconds * fps)))
        assert clip.timing == read_clip(video, len(clip.pixels)).timing
    assert len({len(read_clip(video, 12, fps).pixels) for fps in (0.01, 1, 2, 100)}) >= 3
    assert len(read_clip(video, 3, 0.01).pixels) == 3
    folder.mkdir()
    for number in range(30):  # ten seconds
        Image.fromarray(clip.pixels[0]).save(folder / f"{number}.png")
    assert len(read_clip(folder, 64, 0.7).pixels) == 7
    assert len(read_clip(folder, 64, 60).pixels) == 30
    for number in range(3, 30):
        (folder / f"{number}.png").unlink()
    assert len(read_clip(folder, 64, 0.7).pixels) == 3


def test_frames_a_second_of_a_video_that_does_not_say_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(make_world("train", 0, sampled=3), tmp_path / "v.mp4", size=32)
    monkeypatch.setattr(VideoReader, "get_avg_fps", lambda self: 0.0)
    assert read_clip(tmp_path / "v.mp4", 5).timing.fps is None
    with pytest.raises(VideoError, match=r"v\.mp4: the file does not state its frame rate, which model\.fps=2 needs"):
        read_clip(tmp_path / "v.mp4", 5, 2)


def test_clips_tell_when_their_frames_are_shown(tmp_path: Path) -> None:
    write_video(make_world("train", 0, sampled=3), tmp_path / "v.mp4", size=32)
    clip = read_clip(tmp_path / "v.mp4", 2)
    assert clip.timing.indices == (0, clip.timing.total - 1)
    assert clip.timing.fps == VideoReader(str(tmp_path / "v.mp4")).get_avg_fps() > 0
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        Image.fromarray(clip.pixels[0]).save(tmp_path / "pictures" / f"{number}.png")
    assert read_clip(tmp_path / "pictures", 3).timing == Timing((0, 2, 4), 5, 3.0)
    with pytest.raises(ValueError, match="fps=0"):
        Timing((0,), 1, 0)
    for indices in ((0, 2), (1, 0), (-1, 0), ()):
        with pytest.raises(ValueError, match="give ascending frame numbers below total=2"):
            Timing(indices, 2, 1.0)


def test_numbers_of_pictures_count_as_such(tmp_path: Path) -> None:
    names = ["0001.jpg", "2.png", "9.png", "10.PNG", "a2b1.png", "a2b03.png", "a10.png", "b.png"]
    for name in [*names, "notes.txt"]:
        (tmp_path / name).touch()
    (tmp_path / "._2.png").touch()
    (tmp_path / "3.png").mkdir()
    assert [path.name for path in pictures(tmp_path)] == names


def test_pictures_are_turned_as_their_camera_says(tmp_path: Path) -> None:
    upright = Image.new("RGB", (64, 32), "white")
    upright.paste((0, 0, 255), (0, 0, 16, 32))
    sideways, turned = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # its first row is shown at the right
    upright.save(tmp_path / "1.png")
    sideways.save(tmp_path / "2.jpg", exif=turned, quality=100, subsampling=0)
    first, second = read_frames(tmp_path, 2).astype(int)
    assert np.abs(first - second).max() < 8


def test_grey_pictures_of_16_bits(tmp_path: Path) -> None:
    ramp = np.linspace(0, 2**16 - 1, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "1.png")
    assert (read_frames(tmp_path, 1)[0] == (ramp // 256)[..., None]).all()
