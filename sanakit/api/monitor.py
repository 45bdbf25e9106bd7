"""A drift monitor for anybody's training loop: values of every step go in, readings come out at a few evaluations."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from sanakit.api.drift import ADDITIVE, KEPT, as_mask, as_tensor
from sanakit.api.options import as_count, as_number
from sanakit.contracts import Reading
from sanakit.drift.stream import ALPHA, CAUSES, Stream
from sanakit.errors import SanakitError, did_you_mean
from sanakit.text_encoders import PromptEmbeds

KEY = "monitor"
MOVING = ("mean", "log-sd")
STILL_TEXT = ("mean", "norms")
TOKENS = "embeddings"  # the kind that needs a mask


class DriftMonitor:
    """Watches a stream of latents, embeddings or activations against a reference.

        monitor = sk.DriftMonitor(latents, steps=10_000)
        for step, batch in enumerate(batches, 1):
            ...
            monitor.update(batch_latents)
            if monitor.due(step):
                for reading in monitor.compute(step):
                    ...

    `update` copies a few rows of some steps and never waits for the device; `compute` does.

    reference: latents (N, C, h, w), embeddings or activations (N, L, D), at least 2 rows, 300 or more are better; a
    list of such, one a shape. mask: (N, L) of embeddings, 1 = keep. kind: what the values are, which names the likely
    cause: latents, embeddings, adapters, activations, generated or components. frozen: nothing may drift, and an
    e-process alarms falsely with probability at most alpha over the whole run; False for what drifts by design, which
    alarms outside `band` standard deviations. grouped: each batch is of one kind (aspect buckets, captions sorted by
    length), so one of its rows is kept; more would speak of the kind. num_evaluations: calls of `compute` in the whole
    run. steps: calls of `update` in the whole run. name: said in every reading, such as the layer. Raises SK0104,
    SK0701, SK0704.
    """

    def __init__(
        self,
        reference: Any,
        *,
        steps: int,
        mask: Any = None,
        kind: str = "latents",
        frozen: bool = True,
        alpha: float = ALPHA,
        band: float = 0.5,
        grouped: bool = False,
        num_evaluations: int = 8,
        name: str = "",
    ) -> None:
        if kind not in CAUSES:
            raise SanakitError("SK0104", f"kind is {kind!r}{did_you_mean(kind, [*CAUSES])}; known: {', '.join(CAUSES)}")
        steps, num_evaluations = as_count("steps", steps), as_count("num_evaluations", num_evaluations)
        alpha, band = as_number("alpha", alpha, above=0, below=1), as_number("band", band, above=0)
        self.kind, self.every = kind, -(-steps // num_evaluations)
        self.alarms: list[Reading] = []
        parts = reference if isinstance(reference, list) and mask is None else [reference]
        read = [self._checked(part, mask, "reference", checked=True) for part in parts]
        if not read:
            raise SanakitError("SK0704", "the reference is an empty list, expected tensors, one a shape")
        options: dict[str, Any] = {}
        if not frozen or kind not in ("latents", TOKENS):
            options["blocks"] = MOVING
        elif kind == TOKENS:
            options["blocks"] = STILL_TEXT
        self.stream = Stream(
            kind,
            [values.float() for values, _ in read],
            read[0][1],
            still=frozen,
            alpha=alpha,
            band=band,
            num_evaluations=num_evaluations,
            steps=self.every,
            grouped=grouped,
            where=name,
            **options,
        )

    @property
    def verdict(self) -> str:
        """`drift` once a reading has alarmed, else `no-drift`; `inconclusive` before the first evaluation."""
        if self.alarms:
            return "drift"
        return "no-drift" if self.stream.last else "inconclusive"

    def due(self, step: int) -> bool:
        """Whether an evaluation belongs here: at most `num_evaluations`, evenly over `steps`; step counts from 1."""
        return step > 0 and step % self.every == 0

    def update(self, values: Any, mask: Any = None) -> None:
        """Values of one step, shaped as the reference; the batch may have any size. Raises SK0701."""
        tensor, tokens = self._checked(values, mask, "values")
        kept = self.stream.wanted  # `observe` reads no more of them
        self.stream.observe(tensor[:kept].float(), None if tokens is None else tokens[:kept])

    def compute(self, step: int) -> list[Reading]:
        """Readings over what came since the last evaluation; none where nothing did. Those that alarm are added to
        `alarms`. Raises SK0702 for values with other channels than the reference's, SK0701 where the masks keep no
        token."""
        masks = [mask for _, mask in self.stream.kept if mask is not None]
        if masks and not any(bool(mask.any()) for mask in masks):
            raise SanakitError("SK0701", f"the masks since step {self.stream.last} keep no token, {KEPT}", fix=ADDITIVE)
        readings = self.stream.report(step)
        self.alarms += [reading for reading in readings if reading.alarm]
        return readings

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on exactly; torch.save and accelerate take it."""
        return {
            "reference": self._digest(),
            "alarms": [reading.as_dict() for reading in self.alarms],
            "tensors": {name: tensor.clone() for name, tensor in self.stream.tensors(KEY).items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`. Raises SK0505 where the state is of another reference or kind."""
        if state.get("reference") != self._digest():
            raise SanakitError(
                "SK0505",
                f"the state of the monitor is of another reference or kind than this one of {self.kind}",
                fix="Build the monitor with the reference, mask and kind that it had.",
            )
        self.stream.restore({name: tensor.clone() for name, tensor in state["tensors"].items()}, KEY)
        self.alarms = [Reading(**record) for record in state["alarms"]]

    def _digest(self) -> str:
        rows = np.ascontiguousarray(self.stream.base)
        facts = f"{self.kind} {self.stream.still} {self.stream.names}"
        return hashlib.sha256(facts.encode() + rows.tobytes()).hexdigest()

    def _checked(self, values: Any, mask: Any, label: str, *, checked: bool = False) -> tuple[Tensor, Tensor | None]:
        if isinstance(values, PromptEmbeds):
            values, mask = values.embeds, values.mask if mask is None else mask
        tensor = as_tensor(values, label)
        tokens = None if mask is None else as_mask(mask, f"mask of {label}", checked=checked)
        expected = "(N, C, h, w)" if self.kind in ("latents", "generated") else "(N, L, D)"
        ranks = {"latents": (4,), "generated": (4,), TOKENS: (3,)}.get(self.kind, (3, 4))
        if tensor.ndim not in ranks:
            fix = "Say what the values are: kind=, and mask= of embeddings."
            told = f"{label} of kind {self.kind} is {tuple(tensor.shape)}, expected {expected}"
            raise SanakitError("SK0701", told, fix=fix)
        if self.kind == TOKENS and tokens is None:
            raise SanakitError(
                "SK0701",
                f"{label} has no mask, expected (N, L)",
                fix="Give mask=, 1 = keep; of prompts without padding torch.ones(N, L).",
            )
        if tokens is not None and tokens.shape != tensor.shape[:2]:
            raise SanakitError(
                "SK0701", f"mask of {label} is {tuple(tokens.shape)}, expected {tuple(tensor.shape[:2])}"
            )
        return tensor, tokens
