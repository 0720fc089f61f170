"""vitfx.training.config: the packaged recipes, users' files over them, and one sentence for each slip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vitfx.support.errors import UserError
from vitfx.training.config import PACKAGED, TrainConfig, read_config, sets_image_size


def write(path: Path, text: str) -> str:
    (path / "mine.toml").write_text(text)
    return str(path / "mine.toml")


@pytest.fixture(scope="module")
def tiny() -> TrainConfig:
    return read_config("tiny-imagenet")


def test_the_seed_projects_recipe(tiny: TrainConfig) -> None:
    model = tiny.model
    assert (model.width, model.patch, model.depth, model.heads, model.mlp) == (256, 8, 12, 8, 512)
    assert (tiny.training.batch, tiny.training.epochs) == (128, 30)
    assert tiny.images.mean == (0.485, 0.456, 0.406)
    on = ("flip", "crop_scale", "rotation", "noise", "erasing", "cutmix", "mixup", "mix")
    assert [name for name in on if not getattr(tiny.augmentation, name)] == []
    assert min(model.dropout, model.drop_path, tiny.training.average, tiny.training.warm_up) > 0


@pytest.mark.parametrize("name", PACKAGED)
def test_a_copy_of_a_packaged_file_is_the_same(name: str, tmp_path: Path) -> None:
    packaged = Path(__file__).parents[2] / "vitfx" / "training" / "configs" / f"{name}.toml"
    assert read_config(write(tmp_path, packaged.read_text())) == read_config(name)


def test_a_file_over_a_base_changes_what_it_says(tiny: TrainConfig, tmp_path: Path) -> None:
    mine = read_config(write(tmp_path, 'base = "tiny-imagenet"\n[training]\nepochs = 5\nlr = 1\n'))
    assert mine == replace(tiny, training=replace(tiny.training, epochs=5, lr=1.0))
    assert isinstance(mine.training.lr, float)


def test_settings_go_over_the_file_and_options_over_settings(tiny: TrainConfig) -> None:
    settings = ["training.epochs=7", "model.arch = timm:vit_tiny", "augmentation.crop_scale=[0.2, 0.9]"]
    made = read_config("tiny-imagenet", settings, {"training.epochs": 9})
    assert made.training.epochs == 9
    assert made.model.arch == "timm:vit_tiny"
    assert made.augmentation.crop_scale == (0.2, 0.9)
    assert made.images == tiny.images


def test_whether_the_size_is_the_users(tmp_path: Path) -> None:
    mine = write(tmp_path, 'base = "tiny-imagenet"\n[model]\ndepth = 6\n')
    assert not sets_image_size("digits", ["model.depth=3"])
    assert not sets_image_size(mine, [])
    assert sets_image_size("digits", ["training.lr=1", "model.image_size = 16"])
    assert sets_image_size(write(tmp_path, 'base = "tiny-imagenet"\n[model]\nimage_size = 64\n'), [])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[training]\nepoch = 3", "has the unknown key training.epoch: give one of epochs, batch"),
        ("[trainig]\nepochs = 3", "has the unknown section trainig: give one of model, images, augmentation, training"),
        ("training = 3", "has the value 3 for training, which is a section"),
        ("[training]\nepochs = 2.5", "training.epochs is 2.5: give a whole number"),
        ("[training]\nepochs = true", "training.epochs is True: give a whole number"),
        ("[training]\nlr = true", "training.lr is True: give a number"),
        ('[training]\nlr = "high"', "training.lr is 'high': give a number"),
        ("[model]\narch = 3", "model.arch is 3: give a string"),
        ("[images]\nmean = 0.5", "images.mean is 0.5: give a list of numbers"),
        ("[training]\nepochs = 0", "training.epochs is 0: give 1 or more"),
        ("[training]\nlr = 0", "training.lr is 0: give a number above 0"),
        ("[training]\nlr = nan", "training.lr is nan: give a number above 0"),
        ("[training]\naverage = 1", "training.average is 1: give a number from 0 to less than 1"),
        ("[training]\nfinal_lr = 1", "training.final_lr 1 is above training.lr 0.001"),
        ("[training]\nwarm_up = 30", "training.warm_up is 30 of 30 epochs: give fewer"),
        ('[training]\nprecision = "fp8"', "training.precision is 'fp8': choose one of auto, fp32, bf16, fp16"),
        ("[augmentation]\nmix = 2", "augmentation.mix is 2: give a number from 0 to 1"),
        ("[augmentation]\nrotation = 200", "augmentation.rotation is 200: give a number from 0 to 180"),
        ("[augmentation]\ncrop_scale = [0.9, 0.2]", "augmentation.crop_scale is [0.9, 0.2]"),
        ("[augmentation]\ncrop_ratio = [1]", "augmentation.crop_ratio is [1.0]"),
        ("[training\n", "can't be read as TOML"),
    ],
)
def test_slips_are_told_in_a_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_config(write(tmp_path, f'base = "tiny-imagenet"\n{text}\n'))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_missing_or_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lacks the section images: add it, or begin the file with base"):
        read_config(write(tmp_path, "[model]\n"))
    with pytest.raises(UserError, match="has the base 'imagenet': give tiny-imagenet or digits"):
        read_config(write(tmp_path, 'base = "imagenet"\n'))
    with pytest.raises(UserError, match="`config` none is neither tiny-imagenet nor digits nor a file"):
        read_config("none")
    with pytest.raises(UserError, match="`set` epochs has no value"):
        read_config("digits", ["epochs"])
    with pytest.raises(UserError, match="`set` epochs=3 has no section"):
        read_config("digits", ["epochs=3"])
    with pytest.raises(UserError, match=r"unknown key training\.epoch"):
        read_config("digits", ["training.epoch=3"])


@pytest.mark.parametrize(
    ("given", "size"),
    [("32", (32, 32)), ("[32, 64]", (32, 64)), ("[64, 64]", (64, 64))],
)
def test_images_may_have_two_sides(given: str, size: tuple[int, int]) -> None:
    config = read_config("digits", [f"model.image_size={given}"])
    assert config.model.size == config.preprocess.size == size
    assert isinstance(config.model.image_size, int) == (size[0] == size[1])


@pytest.mark.parametrize("given", ["[32]", "[32, 64, 3]", "[32, 6.5]", "32.5", "big", "[0, 8]", "true"])
def test_what_is_no_size_is_refused(given: str) -> None:
    with pytest.raises(UserError, match=r"model\.image_size is "):
        read_config("digits", [f"model.image_size={given}"])
