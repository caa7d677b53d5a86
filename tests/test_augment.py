"""Images change at random while they are trained on, and only then."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_train import CLASSES, SHAPE, network, problem, train

from conet_onnx.data import Feeds, Split
from conet_onnx.errors import UsageError
from conet_onnx.torch_backend import fit
from tools.torchvision_schemas import define_missing_schemas

define_missing_schemas()  # a CPU-only torch

from conet_onnx.torch_backend.augment import GROUP, Augmentation  # noqa: E402 - it imports torchvision

IMAGES = np.random.default_rng(0).integers(1, 256, (64, 3, 16, 16)).astype(np.uint8)


def changed(*names: str, seed: int = 0, images: Any = IMAGES) -> Any:
    torch.manual_seed(seed)
    return Augmentation(names, images.shape[1:], 10)(images)


class TestEach:
    @pytest.mark.parametrize("name", ["crop", "flip", "cutout", "randaugment"])
    def test_it_is_drawn_anew_and_repeats_with_the_seed(self, name: str) -> None:
        one, same, other = changed(name), changed(name), changed(name, seed=1)
        assert one.shape == IMAGES.shape
        assert one.dtype == np.uint8
        np.testing.assert_array_equal(one, same)
        assert (one != other).any()
        assert (one != IMAGES).any()

    def test_flips_turn_left_to_right_or_leave(self) -> None:
        made = changed("flip")
        kinds = [(a == b).all() or ((a == b[..., ::-1]).all() and 2) for a, b in zip(made, IMAGES, strict=True)]
        assert set(kinds) == {True, 2}

    def test_crops_move_by_at_most_the_padding(self) -> None:
        for a, b in zip(changed("crop")[::GROUP], IMAGES[::GROUP], strict=True):
            padded = np.pad(b, ((0, 0), (2, 2), (2, 2)))
            assert any((a == padded[:, i : i + 16, j : j + 16]).all() for i in range(5) for j in range(5))

    def test_cutout_blanks_a_quarter(self) -> None:
        made = changed("cutout")
        assert (made == 0).mean() == pytest.approx(0.25, abs=0.01)
        assert ((made == 0) | (made == IMAGES)).all()

    def test_neighbours_share_a_draw_and_groups_do_not(self) -> None:
        same = np.repeat(IMAGES[:1], 64, 0)
        made = changed("crop", images=same)
        groups = made.reshape(-1, GROUP, *made.shape[1:])
        assert (groups == groups[:, :1]).all()
        assert len(np.unique(groups[:, 0].reshape(len(groups), -1), axis=0)) > 2

    def test_mixup_mixes_images_and_classes_alike(self) -> None:
        torch.manual_seed(0)
        images, labels = torch.rand(16, 3, 4, 4), torch.arange(16) % 10
        mixed, shares = Augmentation(["mixup"], (3, 4, 4), 10).mixed(images, labels)
        torch.testing.assert_close(shares.sum(1), torch.ones(16))
        weight = shares[0].max()
        hot = torch.nn.functional.one_hot(labels, 10).float()
        pairs = [torch.roll(t, 1, 0) for t in (images, hot)]
        for share in (weight, 1 - weight):
            if torch.allclose(shares, share * hot + (1 - share) * pairs[1]):
                torch.testing.assert_close(mixed, share * images + (1 - share) * pairs[0])
                return
        pytest.fail("images and classes were not mixed with one weight")


class TestTraining:
    @pytest.mark.parametrize("names", [("crop", "flip"), ("cutout",), ("mixup",), ("crop", "mixup")])
    def test_it_still_learns_and_repeats(self, names: tuple[str, ...]) -> None:
        one, again = (train(network(), problem(), epochs=3, augment=names) for _ in range(2))
        plain = train(network(), problem(), epochs=3)
        assert one.graph.model == again.graph.model
        assert one.graph.model != plain.graph.model
        assert one.history[-1]["loss"] < one.history[0]["loss"]

    def test_the_teacher_is_asked_about_what_the_student_sees(self) -> None:
        """What it says of the images as they are stored is not kept then."""
        teacher = train(network(16), problem(), epochs=4).graph
        fitted = train(network(), problem(labels=False), epochs=4, teacher=teacher, augment=("crop", "mixup")[:1])
        assert fitted.history[-1]["distillation"] < fitted.history[0]["distillation"] / 2


class TestBadInput:
    def test_mixup_without_classes(self) -> None:
        with pytest.raises(UsageError, match="mixup mixes labels"):
            train(network(), problem(labels=False), epochs=1, teacher=network(), augment=("mixup",))

    def test_of_what_is_no_image(self) -> None:
        data = Split(Feeds({"x": np.zeros((20, *SHAPE), np.float32)}), np.arange(20) % CLASSES)
        with pytest.raises(UsageError, match="change images"):
            fit(network(), data, epochs=1, augment=("flip",), accelerator="cpu")

    def test_unknown_ones(self) -> None:
        with pytest.raises(UsageError, match="augmentation 'blur'"):
            train(network(), problem(), epochs=1, augment=("blur",))
