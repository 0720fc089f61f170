"""Hugging Face folders of backbones and towers: which tensor is the answer is chosen, and what it is is told."""

import json

import pytest
import torch
import transformers

from vitfx.graph.answers import declared_kind
from vitfx.models.checkpoint import load_model
from vitfx.support.errors import UserError

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40, "image_size": 32,
    "patch_size": 16,
}  # fmt: skip
CLIP = transformers.CLIPVisionConfig(**SIZES, projection_dim=24)
MODELS = {
    "ViT": (lambda: transformers.ViTModel(transformers.ViTConfig(**SIZES)), "pooler_output", (2, 32)),
    "ViT, tokens": (lambda: transformers.ViTModel(transformers.ViTConfig(**SIZES)), "last_hidden_state", (2, 5, 32)),
    "DINOv2": (lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)), "pooler_output", (2, 32)),
    "DINOv3": (lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**SIZES)), "pooler_output", (2, 32)),
    "CLIP": (lambda: transformers.CLIPVisionModel(CLIP), "pooler_output", (2, 32)),
    "CLIP, projected": (lambda: transformers.CLIPVisionModelWithProjection(CLIP), "image_embeds", (2, 24)),
    "SigLIP": (
        lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES)),
        "pooler_output",
        (2, 32),
    ),
    "DINOv2 backbone": (
        lambda: transformers.Dinov2Backbone(transformers.Dinov2Config(**SIZES)),
        None,
        (2, 32, 2, 2),
    ),
}


def saved(folder, name):
    model = MODELS[name][0]().eval()
    model.save_pretrained(folder)
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_backbone_answers_with_what_is_asked_for(tmp_path, name):
    model = saved(tmp_path, name)
    _, output, shape = MODELS[name]
    pixels = torch.randn(2, 3, 32, 32)
    loaded = load_model(str(tmp_path), output=output)
    with torch.no_grad():
        answers, expected = loaded.module(pixels), model(pixels)
    assert answers.shape == shape and loaded.classes is None
    assert torch.equal(answers, expected[output] if output else expected.feature_maps[0])
    assert declared_kind(loaded.module).name == "embedding"


@pytest.mark.parametrize("name", ["ViT", "DINOv2", "DINOv3", "CLIP", "SigLIP"])
def test_which_answer_is_asked_for(tmp_path, name):
    saved(tmp_path, name)
    with pytest.raises(UserError, match=r"returns last_hidden_state .*pooler_output .*: choose one with `output`"):
        load_model(str(tmp_path))


def test_weights_without_the_pooler(tmp_path):
    model = transformers.ViTModel(transformers.ViTConfig(**SIZES), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    with torch.no_grad():
        assert loaded.module(torch.zeros(2, 3, 32, 32)).shape == (2, 5, 32)


def test_weights_of_their_own_file(tmp_path):
    model = saved(tmp_path / "folder", "DINOv2")
    torch.save(model.state_dict(), tmp_path / "w.pt")
    loaded = load_model(str(tmp_path / "w.pt"), arch=f"hf:{tmp_path / 'folder'}", output="pooler_output")
    with torch.no_grad():
        assert torch.equal(loaded.module(torch.ones(2, 3, 32, 32)), model(torch.ones(2, 3, 32, 32)).pooler_output)


@pytest.mark.parametrize("architecture", ["CLIPModel", "BertModel", "os.system", "AutoModel", "PreTrainedModel", 7])
def test_a_folder_of_another_class_is_refused(tmp_path, architecture):
    saved(tmp_path, "CLIP")
    record = json.loads((tmp_path / "config.json").read_text()) | {"architectures": [architecture]}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError):
        load_model(str(tmp_path))
