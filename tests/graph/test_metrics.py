import pytest
import torch
from torch import tensor
from torch.nn import functional as F

from vitfx.graph.divergence import Classes, Dense, Embedding, Labels, Values
from vitfx.graph.metrics import alike, loss, mean_average_precision, right


def share(sums):
    part, of = sums.sum(dim=0).tolist()
    return part / of


def test_classes_are_counted_by_top_1():
    answers, labels = tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]), tensor([1, 1, 1])
    assert share(right(Classes(), answers, labels)) == pytest.approx(2 / 3)
    assert share(alike(Classes(), answers, answers.flip(1))) == 0
    assert torch.allclose(loss(Classes(), answers, labels), F.cross_entropy(answers, labels, reduction="none").double())
    probabilities = answers.softmax(-1)
    assert torch.allclose(loss(Classes(True), probabilities, labels), loss(Classes(), answers, labels), atol=1e-6)


@pytest.mark.parametrize("probabilities", [False, True])
def test_labels_are_counted_by_micro_f1(probabilities):
    """TP 3, FP 1, FN 2 over all images and labels: 6 of 9. As scikit-learn's f1_score(…, average="micro")."""
    answers = tensor([[2.0, -1.0, 0.5], [-1.0, -2.0, 1.0], [1.0, -1.0, -1.0]])
    labels = tensor([[1, 1, 1], [0, 0, 0], [1, 0, 1]])
    answers = answers.sigmoid() if probabilities else answers
    assert share(right(Labels(probabilities), answers, labels)) == pytest.approx(6 / 9)
    other = answers.clone()
    other[0] = other[1]
    assert share(alike(Labels(probabilities), answers, other)) == pytest.approx(8 / 9)


@pytest.mark.parametrize("answers", [tensor([[2.0], [-1.0], [3.0]]), tensor([2.0, -1.0, 3.0])])
def test_one_logit_says_yes_or_no(answers):
    labels = tensor([1, 0, 0])
    assert share(right(Labels(), answers, labels)) == pytest.approx(2 / 3)
    expected = F.binary_cross_entropy_with_logits(answers.reshape(-1), labels.float(), reduction="none")
    assert torch.allclose(loss(Labels(), answers, labels), expected.double())


def test_a_class_folder_is_the_one_label_of_its_images():
    answers = tensor([[2.0, -1.0], [1.0, 3.0]])
    assert share(right(Labels(), answers, tensor([0, 1]))) == pytest.approx(4 / 5)


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        # The example of scikit-learn's average_precision_score.
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.8333333333333333),
        ([3.0, 2.0, 1.0], [1, 0, 1], (1 + 2 / 3) / 2),
        # Equal scores come together.
        ([1.0, 1.0, 0.0], [1, 0, 0], 0.5),
        ([1.0, 2.0], [0, 0], None),
    ],
)
def test_average_precision(scores, labels, expected):
    found = mean_average_precision(tensor(scores)[:, None], tensor(labels)[:, None])
    assert found is None if expected is None else found == pytest.approx(expected)


def test_embeddings_agree_on_nearest_neighbours():
    answers = tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    assert share(alike(Embedding(), answers, 3 * answers)) == 1
    assert share(alike(Embedding(), answers, answers[[2, 1, 0, 3]])) == 0
    assert alike(Embedding(), answers[:1], answers[:1]) is None
    assert right(Embedding(), answers, tensor([0, 0, 1, 1])) is None


def test_dense_answers_are_counted_by_pixel_and_token():
    by_pixel = torch.zeros(2, 3, 2, 2)
    by_pixel[:, 1] = 1
    labels = tensor([[[1, 1], [1, 0]], [[2, 1], [1, 1]]])
    assert share(right(Dense(), by_pixel, labels)) == pytest.approx(6 / 8)
    by_token = by_pixel.flatten(2).transpose(1, 2)
    assert share(right(Dense(), by_token, labels.flatten(1))) == pytest.approx(6 / 8)
    expected = F.cross_entropy(by_pixel.double(), labels, reduction="none").mean((1, 2))
    assert torch.allclose(loss(Dense(), by_pixel, labels), expected)
    assert torch.allclose(loss(Dense(), by_token, labels.flatten(1)), expected)
    assert right(Dense(), by_pixel, tensor([0, 1])) is None


def test_values_have_a_squared_error_and_no_share():
    answers, labels = tensor([[1.0, 2.0], [0.0, 0.0]]), tensor([[1.0, 1.0], [2.0, 0.0]])
    assert loss(Values(), answers, labels).tolist() == [0.5, 2.0]
    assert (right(Values(), answers, labels), alike(Values(), answers, answers)) == (None, None)
    assert loss(Values(), answers, tensor([0, 1])) is None
