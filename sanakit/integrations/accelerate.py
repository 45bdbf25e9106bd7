"""Readings through accelerate's trackers (W&B, TensorBoard, MLflow and others): for diffusers' training scripts.

    watch = AccelerateWatch(accelerator, steps=args.max_train_steps)
    ...
    watch(latents=model_input, embeddings=(prompt_embeds, prompt_attention_mask))

Every process watches what it trains on; the main process reports. `accelerator.save_state` keeps the evidence.
"""

from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger

from sanakit.contracts import Reading
from sanakit.integrations.watch import Watch, metrics_of


class AccelerateWatch(Watch):
    """A `Watch` whose readings are logged at the step of the loop: metrics `drift/...` to the accelerator's trackers,
    alarms as warnings of the logger `sanakit`.

    accelerator: the script's own. steps: calls in the whole run of this process. checkpointed: part of
    `accelerator.save_state`; construct it before `load_state`. options: as of `Watch`.
    """

    def __init__(self, accelerator: Accelerator, *, steps: int, checkpointed: bool = True, **options: Any) -> None:
        self.accelerator = accelerator
        self.logger = get_logger("sanakit")
        super().__init__(steps=steps, report=self._log, **options)
        if checkpointed:
            accelerator.register_for_checkpointing(self)

    def _log(self, readings: list[Reading], step: int) -> None:
        self.accelerator.log(metrics_of(readings), step=step)
        for reading in readings:
            if reading.alarm:
                self.logger.warning(f"step {step}: {reading.title}: {reading.value:.3g} at {reading.where}")
