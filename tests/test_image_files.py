"""What image files of many sizes become: torchvision's own pixels, the same in every process, however many threads."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import call, only_line, save, small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conet_onnx.data import DataSpec, images, load_data
from conet_onnx.data.images import AS_STORED, Encoded, Sizing, decode
from conet_onnx.errors import DataError, UsageError
from conet_onnx.searching import answering, read_run
from conet_onnx.searching.task import TrialTask
from conet_onnx.searching.trial import TrialSettings, Workshop, evaluate_trial

MODEL = Path(__file__).parent.parent / "models" / "digits_resnet8.onnx"
Array = np.ndarray[Any, Any]


def picture(height: int, width: int, *, mode: str = "RGB", seed: int = 0) -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def write(root: Path, sizes: Sequence[tuple[int, int]], *, mode: str = "RGB", split: str = "test") -> None:
    """Images of these heights and widths in the classes 0, 1, 0, 1, ..."""
    for i, size in enumerate(sizes):
        (root / split / str(i % 2)).mkdir(parents=True, exist_ok=True)
        picture(*size, mode=mode, seed=i).save(root / split / str(i % 2) / f"{i:03}.png")


def torchvision(resize: int | None, crop: int | None) -> Callable[[Image.Image], Array]:
    """The oracle: its own transforms, on images as its own loader of folders gives them."""
    from tools.torchvision_schemas import define_missing_schemas

    define_missing_schemas()
    from torchvision import transforms

    steps = [*([transforms.Resize(resize)] if resize else []), *([transforms.CenterCrop(crop)] if crop else [])]
    return lambda image: np.asarray(transforms.Compose(steps)(image))


class TestSizing:
    @given(
        height=st.integers(1, 90),
        width=st.integers(1, 90),
        resize=st.none() | st.integers(1, 70),
        crop=st.none() | st.integers(1, 70),
        mode=st.sampled_from(["RGB", "L"]),
    )
    @settings(deadline=None)
    def test_pixels_are_torchvisions(
        self, height: int, width: int, resize: int | None, crop: int | None, mode: str
    ) -> None:
        image, sizing = picture(height, width, mode=mode), Sizing(resize, crop)
        if crop is not None and min(sizing.resized(height, width)) < crop:
            with pytest.raises(DataError, match=f"too small for --crop {crop}"):
                sizing.size(height, width)
            return
        expected, got = torchvision(resize, crop)(image), np.asarray(sizing.apply(image))
        assert sizing.size(height, width) == got.shape[:2] == expected.shape[:2]
        assert np.array_equal(got, expected)

    @pytest.mark.parametrize(
        ("kind", "modes"),
        [("PNG", "RGB L P RGBA LA 1"), ("JPEG", "RGB L CMYK"), ("WEBP", "RGB L RGBA"), ("BMP", "P 1")],
    )
    def test_so_are_those_of_files_of_every_mode(self, tmp_path: Path, kind: str, modes: str) -> None:
        for mode in modes.split():
            file = tmp_path / mode / "test" / "a" / f"x.{kind.lower()}"
            file.parent.mkdir(parents=True)
            picture(37, 52).convert(mode).save(file, kind)
            got = load_data(tmp_path / mode, resize=24, crop=20).split("test").images[:][0]
            with Image.open(file) as image:
                expected = torchvision(24, 20)(image.convert("RGB"))
            assert np.array_equal(got, np.moveaxis(expected[:, :, : len(got)], -1, 0)), mode

    def test_as_stored_is_false_and_says_nothing(self) -> None:
        assert not AS_STORED
        assert (str(AS_STORED), str(Sizing(256, 224)), str(Sizing(crop=8))) == ("", "resize 256, crop 224", "crop 8")

    @pytest.mark.parametrize("size", [0, -3])
    def test_sizes_below_one_are_refused(self, tmp_path: Path, size: int) -> None:
        write(tmp_path, [(8, 8)])
        with pytest.raises(UsageError, match=f"resize={size}: expected at least 1 pixel"):
            load_data(tmp_path, resize=size)
        with pytest.raises(UsageError, match=f"crop={size}"):
            load_data(tmp_path, crop=size)


class TestData:
    SIZES = ((20, 30), (30, 20), (25, 25), (21, 47))

    def test_a_folder_of_many_sizes_comes_to_one(self, tmp_path: Path) -> None:
        write(tmp_path, self.SIZES)
        data = load_data(tmp_path, resize=18, crop=16)
        assert data.name == f"{tmp_path} (resize 18, crop 16)"
        test = data.split("test")
        assert test.shape == (3, 16, 16)
        assert test.labels is not None
        assert test.labels.tolist() == [0, 0, 1, 1]
        for i, order in enumerate((0, 2, 1, 3)):
            expected = torchvision(18, 16)(picture(*self.SIZES[order], seed=order))
            assert np.array_equal(test.images[:][i].transpose(1, 2, 0), expected)

    def test_parquet_does_the_same(self, tmp_path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        blobs = [{"bytes": encoded(picture(*size, seed=i)), "path": ""} for i, size in enumerate(self.SIZES)]
        pq.write_table(pa.table({"image": pa.array(blobs)}), tmp_path / "test.parquet")
        for place in (tmp_path, tmp_path / "test.parquet"):
            got = load_data(place, resize=18, crop=16).split("test").images[:]
            assert np.array_equal(got[3].transpose(1, 2, 0), torchvision(18, 16)(picture(21, 47, seed=3)))

    def test_lazily_and_at_once_give_the_same_pixels(self) -> None:
        files = [encoded(picture(*size, seed=i)) for i, size in enumerate(self.SIZES)]
        lazy, eager = decode(files, str, Sizing(18, 16), limit=0), decode(files, str, Sizing(18, 16))
        assert isinstance(lazy, Encoded)
        assert isinstance(eager, np.ndarray)
        assert np.array_equal(lazy[np.array([3, 0])], eager[[3, 0]])

    @pytest.mark.parametrize(
        ("asked", "says"),
        [
            ({}, r"002\.png is 25x25, the first image 20x30; .* give --resize and --crop, or store"),
            ({"resize": 10}, r"002\.png is 25x25, resized 10x10, the first image 10x15; .* give --crop too"),
            ({"crop": 21}, r"000\.png is 20x30: 20x30 is too small for --crop 21; give --resize 21 or more"),
            ({"crop": 20, "resize": 12}, r"000\.png is 20x30: 12x18 is too small for --crop 20"),
        ],
    )
    def test_images_that_do_not_come_to_one_size_are_named(
        self, tmp_path: Path, asked: dict[str, int], says: str
    ) -> None:
        write(tmp_path, self.SIZES)
        with pytest.raises(DataError, match=says) as caught:
            load_data(tmp_path, **asked).split("test")
        assert "\n" not in str(caught.value)

    def test_a_later_image_that_is_too_small_for_the_crop_is_named(self, tmp_path: Path) -> None:
        write(tmp_path, [(20, 30), (30, 19), (19, 20)])
        with pytest.raises(DataError, match=r"002\.png is 19x20: 19x20 is too small"):
            load_data(tmp_path, crop=20).split("test")

    @pytest.mark.parametrize("kind", ["digits", "npz", "npy", "cifar10", "function"])
    def test_arrays_are_not_resized(self, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from test_data import write_cifar

        np.savez(tmp_path / "d.npz", x_test=np.zeros((2, 1, 8, 8)))
        np.save(tmp_path / "d.npy", np.zeros((2, 1, 8, 8)))
        (tmp_path / "sized.py").write_text("def f(): return {'test': ([[[1.0]]], None)}")
        monkeypatch.delitem(__import__("sys").modules, "sized", raising=False)
        if kind == "cifar10":
            write_cifar(tmp_path, kind)
        spec = {"npz": "d.npz", "npy": "d.npy", "cifar10": f"cifar10:{tmp_path}", "function": "sized:f"}.get(kind, kind)
        with pytest.raises(UsageError, match=r"resize 8: image files are resized, and .* is arrays"):
            load_data(spec, resize=8, root=tmp_path)

    def test_a_specification_says_it_all(self, tmp_path: Path) -> None:
        write(tmp_path, self.SIZES)
        spec = DataSpec(str(tmp_path), resize=18, crop=16)
        a, b = load_data(pickle.loads(pickle.dumps(spec))), load_data(tmp_path, resize=18, crop=16)
        assert str(spec) == a.name == b.name
        assert np.array_equal(a.split("test").images[:], b.split("test").images[:])
        assert load_data(spec, crop=9).split("test").shape == (3, 9, 9)
        assert str(DataSpec("photos")) == "photos"


class TestThreads:
    FILES = tuple(encoded(picture(20, 20, seed=i)) for i in range(100))
    SHAPE = (100, 3, 20, 20)

    @given(st.lists(st.integers(0, 99), max_size=100), st.integers(2, 5))
    @settings(max_examples=20, deadline=None)
    def test_threads_change_neither_pixels_nor_order(self, chosen: list[int], threads: int) -> None:
        index = np.array(chosen, np.int64)
        one, several = (Encoded(self.FILES, str, self.SHAPE, threads=n) for n in (1, threads))
        assert np.array_equal(one[index], several[index])

    @pytest.mark.parametrize("bad", [[99], [40, 41, 99], [17, 16], [0, 99]])
    def test_the_first_bad_file_is_the_one_that_is_named(self, bad: list[int]) -> None:
        files = list(self.FILES)
        for i in bad:
            files[i] = b"junk"
        with pytest.raises(DataError, match=rf"^{min(bad)} is not a readable image"):
            Encoded(files, str, self.SHAPE, threads=4)[:]

    @pytest.mark.parametrize(("size", "several"), [(32, False), (200, True)])
    def test_only_large_images_are_worth_threads(
        self, size: int, several: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(images.os, "cpu_count", lambda: 8)
        made = decode([encoded(picture(size, size))], str, limit=0)
        assert isinstance(made, Encoded)
        assert (made.threads > 1) == several


class TestCommands:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(answering, "LATENCY_SECONDS", 0.02)
        save(small_model(classes=2), tmp_path / "model.onnx")
        for split in ("train", "test"):
            write(tmp_path / "photos", [(12, 10 + i % 3) for i in range(24)], mode="L", split=split)
        return tmp_path

    def test_evaluate_takes_them_and_passes_them_on(self, folder: Path) -> None:
        line = "evaluate model.onnx --data photos --mean 0 --std 1 --provider cpu"
        result = call(f"{line} --resize 9 --crop 8")
        assert result.code == 0, result.err
        assert "conet-onnx search model.onnx --data photos --resize 9 --crop 8 --budget macs=0.5" in result.out
        assert "photos (resize 9, crop 8)" in result.err
        result = call(f"{line} --resize 9")
        assert result.code == 3
        assert "give --crop too" in only_line(result)

    @pytest.mark.parametrize("words", ["--crop 0", "--resize -1", "--crop 8x8"])
    def test_senseless_sizes_are_usage_errors(self, folder: Path, words: str) -> None:
        result = call(f"evaluate model.onnx --data photos {words}")
        assert result.code == 2
        assert words.split()[0] in only_line(result)

    def test_a_search_records_them_and_goes_on_with_no_others(self, folder: Path) -> None:
        line = (
            "search model.onnx --data photos --mean 0 --std 1 --budget macs=0.5 --trials 1 --epochs-per-trial 1 "
            "--epochs 0 --threads 1 --out run --resize 9 --crop 8"
        )
        result = call(line)
        assert result.code == 0, result.err
        assert read_run(folder / "run").settings["data"] == "photos (resize 9, crop 8)"
        assert call(f"{line} --resume").code == 0
        result = call(line.replace("--resize 9", "--resize 10"), "--resume")
        assert result.code == 2
        assert "another data ('photos (resize 9, crop 8)', now 'photos (resize 10, crop 8)')" in only_line(result)

    def test_another_process_needs_the_settings_alone(self, folder: Path) -> None:
        write(folder / "many", [(12 + i % 5, 10) for i in range(24)], mode="L", split="train")
        spec = DataSpec(str(folder / "many"), resize=9, crop=8)
        trial = TrialSettings(str(folder / "model.onnx"), spec, threads=1)
        widths = {"w0": 3, "w1": 4}
        outcomes = []
        for number in range(2):
            weights, plan = (str(folder / f"{number}.{kind}") for kind in ("onnx", "json"))
            task = TrialTask(0, widths, None, weights, plan, "", seed=7)
            outcomes.append(evaluate_trial(task, pickle.loads(pickle.dumps(trial))).validation)
        assert outcomes[0] == outcomes[1] != {}
        assert (folder / "0.onnx").read_bytes() == (folder / "1.onnx").read_bytes()

    def test_a_workshop_is_called_by_its_data(self, folder: Path) -> None:
        import conet_onnx as co

        spec = DataSpec("photos", resize=9, crop=8)
        opened = Workshop.open(
            co.load(folder / "model.onnx"), spec, normalisation=None, epochs=1, provider="cpu", threads=1
        )
        assert opened.data == str(spec) == opened.dataset.name
