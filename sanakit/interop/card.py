"""The model card of an export: what was swapped, from what, under which licences, and what the gates said."""

from pathlib import Path
from typing import Any

import yaml

from sanakit.errors import SanakitError
from sanakit.interop.lora import LAYERS_FILE, RECIPE
from sanakit.records import MISREAD, read_json, read_validation
from sanakit.registry import Registry
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.vaes import VAES

UNSTATED = "not stated"
LORA = (
    "`lora/` holds what makes the base's transformer this one: the low-rank adapter as diffusers and peft read it "
    "(`pipe.load_lora_weights`), and every other layer that is not the base's "
    f"(`{LAYERS_FILE}`, names of SanaTransformer2DModel): new input, output and caption layers, and layers of the "
    "blocks that a closed form has solved. The transformer here has both folded in: load the adapter on the base's "
    f"transformer with these layers put in, not on this one.\n\n```python\n{RECIPE}```"
)


def read_run(run_dir: Path) -> dict[str, Any]:
    """card.json of a run's model with its validation and provenance. Raises SK0605."""
    path = run_dir / "model" / "card.json"
    if not path.is_file():
        wrong = "has no model" if (run_dir / "config.yaml").is_file() else "is not a run folder"
        raise SanakitError("SK0605", f"{run_dir} {wrong}: {path} is not there")

    try:
        card, validation = read_json(path, {}), read_validation(run_dir / "validation.json")
        base = read_json(run_dir / "provenance.json", {}).get("base", {}).get("card", {})
    except MISREAD as error:
        raise SanakitError("SK0605", f"{run_dir}: {error}") from error
    return card | {"validation": validation, "base_card": base, "lora": (run_dir / "lora").is_dir()}


def licences(run: dict[str, Any]) -> dict[str, str]:
    """Licence of every part, as its record or card states it."""
    return {
        "base": run["base_card"].get("licence") or UNSTATED,
        "vae": _licence(VAES, run["vae"]),
        "text encoder": _licence(TEXT_ENCODERS, run["text_encoder"]),
    }


def _licence(registry: Registry[Any], name: str) -> str:
    entry = registry.entries().get(name.partition("?")[0])
    return (entry.licence if entry else "") or UNSTATED


def model_card(run: dict[str, Any], reasons: list[str]) -> str:
    """README.md; reasons: why the folder is not stock."""
    validation, base = run["validation"], run["base_card"]
    kind = {"vae": "VAE", "text_encoder": "text encoder"}.get(validation.get("kind", ""), "component")
    key = validation.get("kind") or "vae"
    before, after = base.get(key, UNSTATED), run[key]
    swapped = f"The {kind} `{before}` was replaced by `{after}`" if before != after else "No component was replaced"
    matter = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["sana", "sanakit"],
        "license": "other",
    }
    stages = [
        f"| {name} | {stage['verdict']} | {_failed(stage['gates'])} |"
        for name, stage in validation.get("stages", {}).items()
    ]
    quality = [f"- {name.replace('_', ' ')}: {value:.4g}" for name, value in run.get("quality", {}).items()]
    text = [
        f"---\n{yaml.safe_dump(matter, sort_keys=False)}---",
        f"# {run['base']} with another {kind}",
        f"{swapped}; base `{run['base']}`. {run['recipe']}, seed {run['seed']}. Trained at {run['image_size']} px "
        f"with flow shift {run['flow_shift']:g} on `{run['data']['source']}` (fingerprint "
        f"`{run['data']['fingerprint'][:16]}`).",
        "## Verdict of the gates: " + validation.get("verdict", "not validated"),
        "\n".join(["| stage | verdict | gates that did not pass |", "|---|---|---|", *stages]),
        "\n".join(quality),
        "## Use",
        _use(run, reasons),
        LORA if run["lora"] else "",
        "## Licences",
        "\n".join(f"- {part}: {licence}" for part, licence in licences(run).items()),
        "What follows from them for this combination is for you to decide.",
    ]
    return "\n\n".join(part for part in text if part) + "\n"


def _failed(gates: list[dict[str, Any]]) -> str:
    rest = [f"{gate['gate']} ({gate['code']}, {gate['verdict']})" for gate in gates if gate["verdict"] != "pass"]
    return ", ".join(rest) or "none"


def _use(run: dict[str, Any], reasons: list[str]) -> str:
    if not reasons:
        return (
            "A stock pipeline. With `sigmas` as below a seed gives the image of `sanakit sample`; without, diffusers' "
            "own steps are taken.\n\n```python\nimport torch\nfrom diffusers import SanaPipeline\n\n"
            'pipe = SanaPipeline.from_pretrained("DIR")\n'
            "sigmas = torch.linspace(1, 0, 25)[:-1].tolist()\n"
            f'pipe("a red apple", height={run["image_size"]}, width={run["image_size"]}, sigmas=sigmas, '
            "num_inference_steps=24, guidance_scale=3.0)\n```"
        )
    return (
        "Not a stock pipeline: SanaPipeline would render it wrong ("
        + "; ".join(reasons)
        + "). It needs the package sanakit.\n\n```python\nfrom sanakit.interop.pipeline import SanakitPipeline\n\n"
        'SanakitPipeline.from_pretrained("DIR")("a red apple").images[0]\n```'
    )
