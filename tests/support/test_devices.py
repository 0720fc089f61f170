import re
from pathlib import Path

import pytest
import torch

from vitfx.support.devices import GPU, gpu_names, is_gpu, pick_device, synchronize, words_for
from vitfx.support.errors import UserError


def gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch):
    gpus(monkeypatch, 0)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    assert gpu_names() == []
    gpus(monkeypatch, 2)
    assert pick_device("auto") == pick_device(GPU) == torch.device(GPU, 0)
    assert pick_device(f"{GPU}:1") == torch.device(GPU, 1)
    assert pick_device("cpu") == torch.device("cpu")
    assert gpu_names() == ["GPU 0", "GPU 1"]
    assert words_for(torch.device(GPU, 1)) == f"{GPU}:1, GPU {GPU}:1"


def test_threads_are_told_of_a_cpu(monkeypatch):
    told = []
    for threads in (1, 8):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        told.append(words_for(torch.device("cpu")))
    assert told == ["cpu, 1 thread", "cpu, 8 threads"]


@pytest.mark.parametrize(("count", "name"), [(0, GPU), (0, f"{GPU}:0"), (2, f"{GPU}:2")])
def test_missing_gpu_is_refused(monkeypatch, count, name):
    gpus(monkeypatch, count)
    with pytest.raises(UserError, match=f"{name}' does not exist, torch sees {count} GPUs"):
        pick_device(name)


@pytest.mark.parametrize("name", ["", "gpu", f"{GPU}:", f"{GPU}:-1", f"{GPU}:x", "CPU", "mps", "cpu:1"])
def test_unknown_name_is_refused(name):
    with pytest.raises(UserError, match=re.escape(f"device {name!r} is not one of auto, cpu")):
        pick_device(name)


def test_synchronize_waits_for_gpus_alone(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    synchronize(torch.device("cpu"))
    synchronize(torch.device(GPU, 1))
    assert waited == [torch.device(GPU, 1)]
    assert is_gpu(torch.device(GPU)) and not is_gpu(torch.device("cpu"))


def test_no_other_file_quotes_the_name():
    root = Path(__file__).resolve().parents[2]
    quoted = re.compile(rf"""["']{GPU}(:\d+)?["']""")
    found = {
        str(file.relative_to(root))
        for folder in ("passes", "vitfx", "benchmarks", "tests")
        for file in (root / folder).rglob("*.py")
        if quoted.search(file.read_text(encoding="utf-8"))
    }
    assert found == {str(Path("vitfx", "support", "devices.py"))}
