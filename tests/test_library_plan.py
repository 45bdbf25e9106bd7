"""`sanakit.plan`: what a swap would touch, from names or objects."""

import json

import pytest

import sanakit as sk
from sanakit.swap.plan import describe_plan, swap_core
from sanakit.vaes import VAES


def test_a_plan_says_what_is_touched_and_how_much_memory_a_step_takes(tiny_system):
    vae = VAES.get("pca-f16c16").tiny()
    plan = sk.plan(tiny_system, vae=vae)
    engine = describe_plan(tiny_system, vae, swap_core(tiny_system, vae, 0))
    assert list(plan.groups) == engine["groups"] and list(plan.notes) == engine["notes"]
    actions = {group["group"]: group["action"] for group in plan.groups}
    assert actions["input"] == actions["output"] == "align" and actions["core"] == "keep"
    assert plan.strategies["naive"]["core"] == "keep, not trained (--controls)" and "reuse" in plan.strategies
    small, large = plan.memory["align+head"], plan.memory["finetune"]
    assert 0 < small["trained_parameters"] < large["trained_parameters"] == large["parameters"]
    assert small["peak"] < large["peak"]
    frame = plan.to_frame()
    assert frame["parameters"].sum() == large["parameters"] and "finetune" in frame.columns
    shown = plan._repr_html_()
    assert "flow shift" in shown and "MiB a step of 32 images" in shown
    assert json.loads(json.dumps(plan.as_dict()))["kind"] == "vae"


def test_a_text_encoder_is_planned_by_its_width(tiny_system):
    plan = sk.plan(tiny_system, text_encoder=tiny_system.text_encoder)
    assert plan.kind == "text_encoder" and plan.base == "the base" and plan.candidate == "minilm"
    caption = next(group for group in plan.groups if group["group"] == "caption")
    assert caption["parameters"] == caption["parameters_before"] and caption["note"] == "16 -> 16 channels"


@pytest.mark.parametrize("given, found", [({}, "neither vae nor"), ({"vae": "a", "text_encoder": "b"}, "both vae and")])
def test_exactly_one_component_is_swapped(given, found):
    with pytest.raises(sk.SanakitError, match=f"SK0104.*found {found} text_encoder"):
        sk.plan("tiny-sana", **given)


def test_a_swap_that_cannot_be_built_is_refused(tiny_system):
    with pytest.raises(sk.SanakitError, match="SK0110"):
        sk.plan(tiny_system, vae=tiny_pca(12))


def tiny_pca(ratio):
    import torch

    from sanakit.vaes.pca import PCAVAE

    images = torch.randint(256, (32, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return PCAVAE.fit(images, ratio, 4)
