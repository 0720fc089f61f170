import json
import os
import platform

import onnxruntime
import pytest
import torch

from vitfx.support import machine
from vitfx.version import VERSION


def test_environment_is_json_and_true():
    facts = machine.environment()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["vitfx"] == VERSION
    assert facts["python"] == platform.python_version()
    assert facts["onnxruntime"] == onnxruntime.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert len(facts["gpus"]) == torch.cuda.device_count()
    assert 1 <= facts["cores"] <= os.cpu_count()
    assert facts["cpu"]


def test_cpu_model_without_cpuinfo_is_the_platforms(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "missing")
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert machine.cpu_model() == platform.machine()


def test_instructions_are_those_of_cpuinfo_or_torchs(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "cpuinfo")
    assert machine.cpu_features() == [torch.backends.cpu.get_cpu_capability().lower()]
    (tmp_path / "cpuinfo").write_text("model name : Fast\nflags\t\t: fpu avx512_vnni avx2 avx512f\n")
    assert machine.cpu_features() == ["avx2", "avx512f", "avx512_vnni"]


@pytest.mark.parametrize(
    ("text", "model"),
    [("model name\t: Fast CPU @ 3 GHz: v2\n", "Fast CPU @ 3 GHz: v2"), ("Hardware : Board\n", "Board")],
)
def test_cpu_model_reads_cpuinfo(monkeypatch, tmp_path, text, model):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\n" + text)
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "cpuinfo")
    assert machine.cpu_model() == model


def test_memory_is_unknown_where_the_system_does_not_tell(monkeypatch):
    def refuse(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 2**20, "SC_PAGE_SIZE": 4096}[name])
    assert machine.memory_gib() == 4.0
    monkeypatch.setattr(os, "sysconf", refuse)
    assert machine.memory_gib() is None


def test_load_average(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 2.0, 3.0), raising=False)
    assert machine.load_average() == 1.5
    monkeypatch.delattr(os, "getloadavg")
    assert machine.load_average() is None
