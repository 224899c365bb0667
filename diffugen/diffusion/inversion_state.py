"""The state of a textual-inversion training, saved as a checkpoint and restored from it.

Knows the learned vectors, the optimiser and the settings that must not change. Does not know how a step is
computed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffugen.config.foreign import parse_json
from diffugen.diffusion.inversion import write_tensors
from diffugen.errors import DiffugenError, ModelError, first_line

if TYPE_CHECKING:
    import torch

CHECKPOINT_SUFFIX = ".checkpoint"
NOTES = "diffugen"
"""Key of our own notes in the metadata of a safetensors file."""


@dataclass
class TrainingState:
    """Everything that changes while a token is learned.

    Attributes:
        rows: The token's vectors, float32 (vectors, width).
        optimiser: Adam, on ``rows`` only.
        step: Number of finished steps.
    """

    rows: torch.nn.Parameter
    optimiser: torch.optim.Optimizer
    step: int = 0

    @staticmethod
    def begin(start: torch.Tensor, learning_rate: float, device: Any) -> TrainingState:
        """Return the state before the first step, with the given initial vectors."""
        import torch

        rows = torch.nn.Parameter(start.to(device))
        return TrainingState(rows, torch.optim.Adam([rows], lr=learning_rate))

    def save(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Write a checkpoint.

        Raises:
            ModelError: The training diverged; the previous checkpoint is kept.
        """
        if not self.rows.isfinite().all():
            raise ModelError(
                f"learning {settings['token']!r} diverged before step {self.step}: its vectors contain NaN "
                f"or infinite values. Choose a learning rate below {settings['learning_rate']:g}"
            )
        kept = {name: value for name, value in self.optimiser.state[self.rows].items() if name != "step"}
        notes = {NOTES: json.dumps({"step": self.step, "settings": settings})}
        write_tensors(path, {"rows": self.rows, **kept}, notes)

    def resume(self, path: Path, out: Path, settings: Mapping[str, Any], steps: int) -> None:
        """Restore the state from a checkpoint, if there is one.

        Args:
            path: The checkpoint.
            out: The token's file.
            settings: Settings of the training, which must equal those of the checkpoint.
            steps: Number of steps of the whole training.

        Raises:
            DiffugenError: The checkpoint is unreadable or of another training, or ``out`` exists without one.
        """
        import torch

        if not path.exists():
            if out.exists():
                raise DiffugenError(
                    f"{out} exists already, without a checkpoint of its training: choose another file, or "
                    "remove it"
                )
            return
        kept, before, step = self._read(path)
        changed = [
            f"{name} {before.get(name)} -> {value}"
            for name, value in settings.items()
            if before.get(name) != value
        ]
        if changed or step > steps:
            changed = changed or [f"steps {step} -> {steps}"]
            raise DiffugenError(
                f"{path} belongs to another training ({', '.join(changed)}): choose another output file, or "
                "remove this checkpoint to start again"
            )
        with torch.no_grad():
            self.rows.copy_(kept.pop("rows"))
        self.optimiser.state[self.rows].update({"step": torch.tensor(float(step)), **kept})
        self.step = step

    def _read(self, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], int]:
        """Return the tensors, settings and step of a checkpoint."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                notes = parse_json(file.metadata()[NOTES])
                kept = {name: file.get_tensor(name).to(self.rows.device) for name in file.keys()}  # noqa: SIM118
            return kept, notes["settings"], int(notes["step"])
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise DiffugenError(
                f"cannot read the checkpoint {path} ({first_line(error)}); remove it to start again"
            ) from error


def digest(arrays: Sequence[NDArray[Any]]) -> str:
    """Return 16 hex digits that depend on the shapes and bytes of arrays."""
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()[:16]
