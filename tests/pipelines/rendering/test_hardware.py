import ctypes
import os

import pytest
import torch

from promptmill.pipelines.rendering import gpus, hardware
from promptmill.pipelines.rendering.hardware import hardware_kind, processor
from promptmill.pipelines.rendering.loading import device_here

INTEL = "processor : 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Xeon\n\nprocessor : 1\nmodel : 7\n"
ARM = "processor : 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"
LISTED = {
    "x86": (INTEL, "GenuineIntel, Xeon, cpu family 6, model 85"),
    "arm": (ARM, "CPU implementer 0x41, CPU part 0xd40"),
}


@pytest.mark.parametrize("name", LISTED)
def test_a_processor_is_named_by_vendor_and_model(tmp_path, name):
    listed, says = LISTED[name]
    (tmp_path / "cpuinfo").write_text(listed)
    assert processor(tmp_path / "cpuinfo") == says


def test_where_linux_lists_none_python_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware.platform, "processor", lambda: "arm")
    assert processor(tmp_path / "nothing") == "arm"


def test_another_processor_is_another_kind_of_hardware(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    kinds = []
    for name, (listed, _) in LISTED.items():
        (tmp_path / name).write_text(listed)
        monkeypatch.setattr(hardware, "CPUINFO", tmp_path / name)
        kinds.append(hardware_kind(1))
    assert kinds[0] != kinds[1]
    assert set(kinds[0]) == {"cpu", "processor", "instructions", "threads"}


def test_another_driver_is_another_kind_of_hardware(monkeypatch):
    class Nvml:
        def __init__(self, version):
            self.version = version

        def nvmlInit_v2(self):  # noqa: N802  # its name
            return 0

        def nvmlSystemGetDriverVersion(self, said, length):  # noqa: N802
            said.value = self.version
            return 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "some GPU")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91000)
    kinds = []
    for version in (b"580.65.06", b"590.1"):
        monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name, version=version: Nvml(version))
        kinds.append(hardware_kind(1))
    assert [kind["driver"] for kind in kinds] == ["580.65.06", "590.1"]
    assert kinds[0]["gpu"] == "some GPU"


def test_without_a_driver_there_is_no_version(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert gpus.driver_version() is None


def test_settings_that_choose_other_kernels_are_another_kind_of_hardware(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "H200")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91000)
    monkeypatch.setattr(hardware, "driver_version", lambda: "570.1")
    for name in hardware.CUDA_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    plain = hardware_kind(1)
    for name in hardware.CUDA_SETTINGS:
        monkeypatch.setenv(name, "1")
        assert hardware_kind(1) == {**plain, name.lower(): "1"}
        monkeypatch.delenv(name)
    device_here()  # which a process calls that computes, before or after its kind is asked for
    assert hardware_kind(1) == plain


def test_no_kernel_is_chosen_by_timing_and_none_that_adds_in_any_order(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for name, value in (("benchmark", True), ("deterministic", False)):
        monkeypatch.setattr(torch.backends.cudnn, name, value)
    device_here()
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (False, True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
