"""Models that return several tensors: which is taken, what is said, and all of the compiler on each."""

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import Tensor, nn

import vitfx
from tests.support.checks import assert_equal
from tests.support.families import CLASSES, SIZE, HandWritten, images, randomised
from vitfx.deploy.runtime import open_session
from vitfx.graph.canonical import read_module
from vitfx.graph.outputs import choose_output, outputs_of
from vitfx.images.overrides import Overrides
from vitfx.models.checkpoint import load_model
from vitfx.runs.memory_inputs import open_given
from vitfx.show import main as show
from vitfx.support.errors import UserError
from vitfx.support.progress import Silent

PIXELS = images(12)
TOKENS, MAP, ROW = torch.zeros(2, 16, 32), torch.zeros(2, 5, 4, 4), torch.zeros(2, 7)
Pair = namedtuple("Pair", ["features", "pooled"])


@dataclass
class Record:
    depth: Tensor
    loss: Tensor | None = None


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        (ROW, []),
        ((TOKENS, ROW), ["0", "1"]),
        (Pair(TOKENS, ROW), ["features", "pooled"]),
        ({"out": MAP, "aux": [MAP, {"deep": ROW}]}, ["out", "aux.0", "aux.1.deep"]),
        (Record(MAP), ["depth"]),
        (SimpleNamespace(logits=ROW), ["logits"]),
        (
            transformers.modeling_outputs.BaseModelOutput(last_hidden_state=TOKENS, hidden_states=(TOKENS, TOKENS)),
            ["last_hidden_state", "hidden_states.0", "hidden_states.1"],
        ),
        ("nothing", []),
    ],
)
def test_names(answer, names):
    assert list(outputs_of(answer)) == names


@pytest.mark.parametrize(
    ("answer", "asked", "name"),
    [
        (ROW, None, None),
        ({"logits": ROW, "features": TOKENS}, None, "logits"),
        ({"depth": MAP}, None, "depth"),
        # A loss and a table are no answers for each image.
        ({"depth": MAP, "loss": torch.tensor(1.0), "anchors": torch.zeros(9, 4)}, None, "depth"),
        ((TOKENS, ROW), "1", "1"),
        ({"logits": ROW, "features": TOKENS}, "features", "features"),
        (None, None, None),
    ],
)
def test_choice(answer, asked, name):
    chosen, note = choose_output(answer, 2, asked)
    assert chosen == name
    several = len(outputs_of(answer)) > 1 and "depth" not in outputs_of(answer)
    assert (note is not None) == several
    assert note is None or note.startswith(f"output {name}: the model returns ")


@pytest.mark.parametrize(
    ("answer", "asked", "sentence"),
    [
        ((TOKENS, ROW), None, r"returns 0 \(2, 16, 32\), 1 \(2, 7\) for 2 images: choose one with `output`$"),
        ({"a": MAP, "b": ROW}, "c", r"no `output` c: it returns a \(2, 5, 4, 4\), b \(2, 7\) for 2 images, give one"),
        (ROW, "logits", "returns one tensor, so `output` logits is not needed: leave it out"),
        ({"loss": torch.tensor(0.0)}, "loss", "no `output` loss: it returns no tensor with an answer an image"),
        ([ROW] * 11, None, r"7 \(2, 7\) and 3 more for 2 images: choose"),
    ],
)
def test_mistakes(answer, asked, sentence):
    with pytest.raises(UserError, match=sentence):
        choose_output(answer, 2, asked)


class Segmenting(HandWritten):
    """Five numbers a patch by a 1×1 convolution, pixels by a linear map of each token, and the mean token."""

    def __init__(self):
        super().__init__(depth=2)
        self.maps, self.to_pixels = nn.Conv2d(32, 5, 1), nn.Linear(32, 3 * 64)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + self.attention(block, block["n1"](x))
            x = block["down"](torch.relu(block["up"](block["n2"](x)))) + x
        maps = self.maps(x.transpose(1, 2).unflatten(2, (4, 4)))
        return {"maps": maps, "pixels": self.to_pixels(x), "pooled": x.mean(1), "aux": (x, maps.mean(1))}


def dinov2():
    config = transformers.Dinov2Config(
        image_size=SIZE, patch_size=8, num_hidden_layers=2, num_attention_heads=4, hidden_size=32
    )
    return transformers.Dinov2Model(config)


@pytest.mark.parametrize(
    ("build", "output", "shape"),
    [
        (Segmenting, "maps", (5, 4, 4)),
        (Segmenting, "pixels", (16, 192)),
        (Segmenting, "pooled", (32,)),
        (Segmenting, "aux.0", (16, 32)),
        (dinov2, "last_hidden_state", (17, 32)),
        (dinov2, "pooler_output", (32,)),
    ],
)
def test_every_output_is_an_answer(build, output, shape):
    model = randomised(build())
    with torch.no_grad():
        expected = outputs_of(model(PIXELS))[output]
    with pytest.raises(UserError, match=f"returns .*{output.replace('.', '[.]')}.*: choose one with `output`"):
        open_given(model, PIXELS, None)
    front = read_module(open_given(model, PIXELS, None, output)[0], PIXELS, Silent())
    assert front.notes == () and expected.shape == (len(PIXELS), *shape)
    with torch.no_grad():
        assert_equal(front.graph_module(PIXELS), expected, 1e-6)
    assert front.kind(None, None, Silent()).name == ("dense" if len(shape) > 1 else "embedding")


@pytest.mark.parametrize(("build", "output"), [(Segmenting, "maps"), (dinov2, "pooler_output")])
def test_a_chosen_output_is_pruned(build, output, tmp_path):
    pruned = vitfx.prune(randomised(build()), PIXELS, output=output, method="magnitude", remove=0.3, paths=4)
    assert pruned.plan.deletions
    pruned.to_onnx(tmp_path / "pruned.onnx")
    session = open_session(tmp_path / "pruned.onnx", torch.device("cpu"))
    assert_equal(session.run(PIXELS), pruned.module(PIXELS), 1e-4)


def test_a_single_output_needs_no_name():
    class Single(HandWritten):
        def forward(self, x):
            return {"scores": super().forward(x)}

    assert vitfx.optimize(randomised(Single()), PIXELS).module(PIXELS).shape == (12, CLASSES)


def test_files(tmp_path, capsys):
    path = tmp_path / "model.pt"
    torch.save(randomised(Segmenting()), path)
    given = {"trust_pickle": True, "overrides": Overrides(size=(SIZE, SIZE))}
    opened = {name: load_model(str(path), output=name, **given) for name in ("maps", "pixels")}
    assert opened["maps"].first_lines[0].startswith("output maps: the model returns maps (2, 5, 4, 4), pixels (2, 16")
    # A circuit of one output is none of another.
    assert opened["maps"].fingerprint != opened["pixels"].fingerprint
    assert opened["maps"].module(PIXELS).shape == (12, 5, 4, 4)
    command = [str(path), "--trust-pickle", "--image-size", str(SIZE)]
    assert show(command) == 2
    assert "choose one with --output" in capsys.readouterr().err
    assert show([*command, "--output", "maps"]) == 0
    assert "output maps: the model returns" in capsys.readouterr().out
