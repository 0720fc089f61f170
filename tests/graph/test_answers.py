"""The kind of a model's answers, as it is found."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import Dinov2Config, Dinov2ForImageClassification, ViTConfig, ViTForImageClassification

from tests.support.families import images, randomised
from tests.support.kinds import KIND, MODELS, SMALL, Behind, make, vit
from vitfx.graph.answers import Kind, declared_kind, ends_without_bias, find_kind, projection_kind
from vitfx.graph.outputs import OneOutput
from vitfx.graph.trace import to_canonical
from vitfx.support.errors import UserError

PIXELS = images(4)
_HF = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40, "image_size": 32,
    "patch_size": 16,
}  # fmt: skip


def found(model, labels=None, asked=None):
    graph_module = to_canonical(model, PIXELS).graph_module
    with torch.no_grad():
        answers = graph_module(PIXELS)
        bare = ends_without_bias(graph_module)
        declared = declared_kind(model) or (projection_kind(model, answers) if bare else None)
        return find_kind(graph_module, answers, labels, asked=asked, declared=declared)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("labels", "values", "one value")])
def test_it_shows_in_the_answers_and_the_graph(name):
    kind = found(make(name))
    assert kind.name == KIND[name]
    assert bool(kind.note) == (name != "classes")
    assert ("taken for probabilities of" in kind.sentence) == ("probabilities" in name)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (torch.tensor([[1, 0, 1, 0, 0]] * 4), "labels"),
        (torch.tensor([[1.0, 0, 1, 0, 0]] * 4), "labels"),
        (torch.randn(4, 5), "values"),
        (torch.tensor([0, 4, 2, 1]), "classes"),
    ],
)
def test_labels_tell_what_logits_do_not(labels, expected):
    assert found(make("labels"), labels).name == expected


def test_shares_of_classes_are_no_values():
    shares = torch.randn(4, 5).softmax(1)
    with pytest.raises(UserError, match="labels are shares that add up to 1: give the number of its class"):
        found(make("labels"), shares)
    assert found(make("labels"), shares, asked=Kind("values", "as asked")).name == "values"


def test_numbers_make_one_logit_a_value():
    assert found(make("one value"), torch.tensor([20.5, 3.0, 7.25, 11.0])).name == "values"
    assert found(make("one value"), torch.tensor([0, 1, 1, 0])).name == "labels"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "labels"),
        ({"num_labels": 3, "problem_type": "regression"}, "values"),
        ({"num_labels": 3, "problem_type": "single_label_classification"}, "classes"),
        ({"num_labels": 3}, None),
        ({"num_labels": 1}, "values"),
        ({"num_labels": 1, "problem_type": "multi_label_classification"}, "labels"),
    ],
)
@pytest.mark.parametrize(
    ("config", "family"), [(ViTConfig, ViTForImageClassification), (Dinov2Config, Dinov2ForImageClassification)]
)
def test_a_hugging_face_configuration_says_it(config, family, more, expected):
    kind = declared_kind(OneOutput(family(config(**_HF, **more)), "logits"))
    assert kind is expected is None or kind.name == expected


def test_timm_says_that_it_has_no_classifier():
    assert declared_kind(nn.Sequential(vit(0))).name == "embedding"
    assert declared_kind(vit(3)) is None


def test_what_the_user_says_comes_first():
    kind = found(make("classes"), asked=Kind("labels", "--task", asked=True))
    assert kind.name == "labels"
    assert "--task" in kind.sentence


@pytest.mark.parametrize(
    ("name", "task", "reason"),
    [
        ("one logit", "classes", r"are \(4, 1\), and the task classes needs two or more numbers an image"),
        ("tokens", "labels", "needs one row an image"),
        ("classes", "dense", "needs a row for each token or pixel"),
        ("one logit without axis", "embedding", "two or more"),
    ],
)
def test_a_task_that_the_answers_can_not_have_is_refused(name, task, reason):
    with pytest.raises(UserError, match=reason):
        found(make(name), asked=Kind(task, "--task"))


@pytest.mark.parametrize(
    ("name", "labels", "reason"),
    [
        (
            "classes",
            torch.tensor([0, 1, 2, 7]),
            "from 0 to 7 and the model has 7 logits: give labels from 0 to 6",
        ),
        ("classes", torch.tensor([0, -100, 2, 1]), "from -100 to 2"),
        ("one logit", torch.tensor([0, 1, 2, 1]), "has 1 logit: give labels from 0 to 1"),
        ("labels", torch.tensor([[1, 1]] * 4), r"are \(4, 2\) for 5 logits: give a 0 or 1 for each logit"),
        ("pixels", torch.zeros(4, 3, 3, dtype=torch.int64), r"has \(3, 3\) labels and \(8, 8\) answers"),
    ],
)
def test_labels_that_no_answer_can_meet_are_refused(name, labels, reason):
    with pytest.raises(UserError, match=reason):
        found(make(name), labels)


def test_an_unknown_task_is_refused():
    with pytest.raises(UserError, match="task boxes is not known: choose one of classes, labels"):
        Kind("boxes", "as asked")


class Tower(nn.Module):
    """A ViT whose features are multiplied by a matrix of this name."""

    def __init__(self, name, bias=False):
        super().__init__()
        self.body, self.name, self.rows = vit(0), name, nn.Parameter(torch.randn(6)) if bias else None
        self.register_parameter(name, nn.Parameter(torch.randn(32, 6)))

    def forward(self, x):
        answers = self.body(x) @ getattr(self, self.name)
        return answers if self.rows is None else answers + self.rows


class Named(nn.Module):
    """A ViT under a bias-free linear map of this name."""

    def __init__(self, name, **attributes):
        super().__init__()
        self.body, self.name = vit(0), name
        self.add_module(name, nn.Linear(32, 6, bias=False))
        for attribute, value in attributes.items():
            setattr(self, attribute, value)

    def forward(self, x):
        return getattr(self, self.name)(self.body(x))


@pytest.mark.parametrize(
    "model",
    [
        Tower("proj"),
        Named("visual_projection"),
        nn.Sequential(Named("image_projection")),
        Behind(Tower("proj"), nn.Identity()),
    ],
)
def test_a_projection_as_clips_is_an_embedding(model):
    kind = found(randomised(_unnamed(model)))
    assert kind.name == "embedding" and "without a bias, as in CLIP's towers" in kind.sentence


@pytest.mark.parametrize("model", [Tower("weights"), Named("last"), Named("head"), Behind(Named("fc"), nn.Identity())])
def test_what_a_projection_without_a_bias_gives_is_asked_for(model):
    model = randomised(_unnamed(model))
    with pytest.raises(
        UserError, match="nothing says whether its 6 numbers are an embedding, as CLIP's are, or logits"
    ):
        found(model)
    assert found(model, torch.tensor([0, 4, 2, 1])).name == "classes"
    assert found(model, asked=Kind("embedding", "--task")).name == "embedding"


@pytest.mark.parametrize(
    "model", [Named("proj", num_classes=6), Named("head", num_classes=6), Tower("proj", bias=True)]
)
def test_a_classifier_without_a_bias_that_says_so(model):
    assert found(randomised(_unnamed(model))).name == "classes"


def clip(classes=6, **more):
    """A tower of CLIP as timm makes it, whose projection is a classifier with a bias of zeros."""
    sizes = {**SMALL, "num_classes": classes, "pre_norm": True, "norm_layer": nn.LayerNorm, **more}
    model = randomised(VisionTransformer(**sizes))
    nn.init.zeros_(model.head.bias)
    return model


def test_timms_projection_of_clip_is_asked_about():
    for model in (clip(), clip(9, global_pool="avg", class_token=False), Behind(clip(), nn.Identity())):
        with pytest.raises(UserError, match="has a bias of zeros, and nothing says whether"):
            found(model)
        assert found(model, torch.tensor([0, 4, 2, 1])).name == "classes"
        assert found(model, asked=Kind("embedding", "--task")).name == "embedding"


def test_a_new_classifier_or_a_trained_one_of_clip_is_none():
    trained = clip()
    nn.init.ones_(trained.head.bias)
    assert found(trained).name == found(clip(pre_norm=False)).name == "classes"


def _unnamed(model):
    """Without timm's own word for models that have no classifier."""
    for part in model.modules():
        if getattr(part, "num_classes", None) == 0:
            part.num_classes = None
    return model
