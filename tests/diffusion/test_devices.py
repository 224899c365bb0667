"""Names of devices, on a machine whose devices torch is made to report."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffugen.diffusion.devices import resolve_device, resolve_devices
from diffugen.errors import ModelError


def machine(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False, xpu: int = 0) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: xpu)


@pytest.mark.parametrize(
    ("devices", "given", "expected"),
    [
        ({}, "auto", "cpu"),
        ({"mps": True}, "auto", "mps"),
        ({"cuda": 1, "mps": True}, "auto", "cuda:0"),
        ({"xpu": 1}, "auto", "cpu"),
        ({"cuda": 2}, "cuda", "cuda:0"),
        ({"cuda": 2}, "cuda:1", "cuda:1"),
        ({"cuda": 2}, "cpu", "cpu"),
        ({"mps": True}, "mps", "mps"),
        ({"xpu": 2}, "xpu", "xpu"),
        ({"xpu": 2}, "xpu:1", "xpu:1"),
    ],
)
def test_a_device_that_exists(
    monkeypatch: pytest.MonkeyPatch, devices: dict[str, Any], given: str, expected: str
) -> None:
    machine(monkeypatch, **devices)
    assert resolve_device(given) == expected


@pytest.mark.parametrize("given", ["gpu", "", "cuda:x", "cuda:-1", "warp"])
def test_a_device_that_torch_does_not_know(given: str) -> None:
    with pytest.raises(ModelError, match=f"unknown device '{given}'; use auto"):
        resolve_device(given)


@pytest.mark.parametrize(
    ("devices", "given"),
    [
        ({}, "cuda"),
        ({}, "mps"),
        ({}, "xpu"),
        ({}, "meta"),
        ({"cuda": 2}, "cuda:2"),
        ({"mps": True}, "cuda:0"),
    ],
)
def test_a_device_that_the_machine_lacks(
    monkeypatch: pytest.MonkeyPatch, devices: dict[str, Any], given: str
) -> None:
    machine(monkeypatch, **devices)
    present = [f"{kind} ({int(count)})" for kind, count in devices.items()]
    with pytest.raises(ModelError) as caught:
        resolve_device(given)
    assert f"device '{given}' is not available" in str(caught.value)
    assert str(caught.value).endswith(f"use auto, or one of {', '.join([*present, 'cpu (1)'])}")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("cuda:0,1", ("cuda:0", "cuda:1")),
        ("cuda:2,0", ("cuda:2", "cuda:0")),
        ("cuda:1", ("cuda:1",)),
        ("cuda", ("cuda:0",)),
        ("auto", ("cuda:0",)),
        ("cpu", ("cpu",)),
    ],
)
def test_several_devices(monkeypatch: pytest.MonkeyPatch, given: str, expected: tuple[str, ...]) -> None:
    machine(monkeypatch, cuda=3)
    assert resolve_devices(given) == expected


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("cuda:0,3", "device 'cuda:3' is not available"),
        ("cuda:1,1", "names a GPU twice"),
        ("cuda:0,", "unknown device"),
        ("cpu:0,1", "device 'cpu:1' is not available"),
    ],
)
def test_several_devices_that_the_machine_lacks(
    monkeypatch: pytest.MonkeyPatch, given: str, error: str
) -> None:
    machine(monkeypatch, cuda=3)
    with pytest.raises(ModelError, match=error):
        resolve_devices(given)
