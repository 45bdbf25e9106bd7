"""What would make a run fit into memory, by what it was doing when memory was full."""

from sanakit.config import Config
from sanakit.distributed import world_size
from sanakit.swap.settings import parts_of

TRAINING = ("training", "rates of", "racing")


def advise(config: Config, label: str) -> str | None:
    """The settings that need less memory for this work, the gentlest first; None where the catalogue's text serves."""
    train, data = config.train, config.data
    if label.startswith(TRAINING):
        images = train.batch_size // world_size()
        micro = images // parts_of(train, images)
        steps = []
        if micro > 1:
            steps.append(f"train.micro_batch={micro // 2} ({micro} images a pass now; the course stays)")
        if train.gradient_checkpointing is not True:
            steps.append("train.gradient_checkpointing=true")
        if train.optimizer == "adamw":
            steps.append("train.optimizer=adamw-8bit")
        if train.parallel == "ddp":
            steps.append("train.parallel=fsdp on more ranks")
        return f"In this order: {'; '.join(f'--set {step}' for step in steps)}." if steps else None
    if label.startswith("encoding"):
        kept = [f"data.{name}=live" for name in ("latents", "embeddings") if getattr(data, name) != "live"]
        steps = [f"--set {' --set '.join(kept)} keeps nothing of the data set in memory"] if kept else []
        if config.base == "none" or config.trains_vae_alone:  # another size than the base's is refused
            steps.append(f"--set data.image_size below {data.size} needs less of the encoder")
        return f"{'; '.join(steps)}." if steps else None
    if label.startswith("sampling"):
        return f"--set smoke.samples below {config.smoke.samples}." if config.smoke.samples > 8 else None
    return None
