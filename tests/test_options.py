"""Option values of the wrong kind are named with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmg_bench.options import check_folder, check_whole, device_of, dtype_of


@pytest.mark.parametrize("value", [0, -1, 1.0, "3", True, None])
def test_whole_numbers(value: object) -> None:
    check_whole("limit", 1, 1)
    with pytest.raises(ValueError, match=r"limit=.*: it must be a whole number, at least 1 or so"):
        check_whole("limit", value, 1, " or so")


def test_folders_to_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch(0o777)  # who may write to it and run it still cannot look into it
    for folder in (tmp_path, tmp_path / "new" / "newer"):
        assert check_folder("output_dir", str(folder)) == folder
    for given in (file, file / "new"):
        with pytest.raises(ValueError, match=rf"^output_dir='{given}': {file} is a file; name another folder$"):
            check_folder("output_dir", str(given))
    with pytest.raises(ValueError, match=r"^output_dir='/proc/new': /proc cannot be written to; name another folder$"):
        check_folder("output_dir", "/proc/new")  # root may write there, and nobody can
    assert list(tmp_path.iterdir()) == [file]

    def refused(**_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("tempfile.TemporaryFile", refused)  # whoever runs the tests may be allowed all
    with pytest.raises(ValueError, match=rf"^results_dir='{tmp_path}/new': {tmp_path} cannot be written to; name"):
        check_folder("results_dir", f"{tmp_path}/new")


def test_dtypes() -> None:
    assert dtype_of("model.dtype", "bfloat16") is torch.bfloat16
    with pytest.raises(ValueError, match=r"model.dtype='int64': choose float32, bfloat16 or float16"):
        dtype_of("model.dtype", "int64")


def test_devices() -> None:
    assert device_of("device", "cpu") == torch.device("cpu")
    assert device_of("device", "auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    count = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"model.device='cuda:{count}': torch sees {count} GPUs here"):
        device_of("model.device", f"cuda:{count}")
    for other in ("gpu", "meta", None):
        with pytest.raises(ValueError, match=rf"model.device={other!r}: choose auto, cpu, cuda or cuda:<number>"):
            device_of("model.device", other)  # type: ignore[arg-type]
