"""The estimate against a real step of the same core: parameters exactly, bytes within a tenth."""

import warnings

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sanakit.adapters import ADAPTERS, adapters_of
from sanakit.core.dit import new_core
from sanakit.errors import SanakitError
from sanakit.strategies.base import STRATEGIES
from sanakit.swap.plan import swap_core
from sanakit.training.checkpoint import checkpoint_bytes, save_checkpoint
from sanakit.training.estimate import estimate, fake_core
from sanakit.training.loop import TrainOptions, new_state

SHAPES = {
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "num_layers": 4,
    "num_cross_attention_heads": 4,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 64,
    "caption_channels": 32,
    "sample_size": 8,
    "patch_size": 1,
}
LATENTS, LENGTH = (8, 8, 8), 24


def guess(strategy, options, world_size=1):
    core, mode = fake_core(SHAPES)
    return estimate(core, mode, strategy, options, latent_shape=LATENTS, caption_length=LENGTH, world_size=world_size)


def measured_peak(core, state, batch):
    """Bytes that a step needs beyond weights and moments, from the allocator's own events."""

    def step():
        output = core(
            hidden_states=torch.randn(batch, *LATENTS),
            encoder_hidden_states=torch.randn(batch, LENGTH, SHAPES["caption_channels"]),
            encoder_attention_mask=torch.ones(batch, LENGTH, dtype=torch.bool),
            timestep=torch.rand(batch),
            return_dict=False,
        )[0]
        torch.nn.functional.mse_loss(output, torch.randn_like(output)).backward()
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)

    step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            step()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_real_step_needs_what_was_said_within_a_tenth(checkpointing, tmp_path):
    options = TrainOptions(max_steps=1, batch_size=32, gradient_checkpointing=checkpointing, ema_decay=0.9)
    strategy = STRATEGIES.get("scratch")
    core = new_core(SHAPES, seed=0)
    state = new_state(core, strategy.parameter_groups(core), options)
    said = guess(strategy, options)
    assert said.parameters == sum(p.numel() for p in core.parameters()) == said.trained_parameters
    real = measured_peak(core, state, 32)
    assert said.peak - said.weights - said.optimizer - said.average == pytest.approx(real, rel=0.1)
    folder = save_checkpoint(tmp_path, core, state, {})
    size = sum(p.stat().st_size for p in folder.iterdir())
    assert said.checkpoint == pytest.approx(size, rel=0.1)
    assert checkpoint_bytes(core, state) == pytest.approx(size, rel=0.1)


def test_ranks_shards_and_frozen_groups_are_counted():
    alone = guess(STRATEGIES.get("scratch"), TrainOptions(max_steps=1, batch_size=32))
    ddp = guess(STRATEGIES.get("scratch"), TrainOptions(max_steps=1, batch_size=32), world_size=4)
    fsdp = guess(STRATEGIES.get("scratch"), TrainOptions(max_steps=1, batch_size=32, parallel="fsdp"), world_size=4)
    head = guess(STRATEGIES.get("align+head"), TrainOptions(max_steps=1, batch_size=32))
    assert ddp.activations < alone.activations / 3 and ddp.optimizer == alone.optimizer
    lora = guess(STRATEGIES.get("lora"), TrainOptions(max_steps=1, batch_size=32))
    assert 0 < lora.trained_parameters < alone.trained_parameters and lora.optimizer == 8 * lora.trained_parameters
    assert fsdp.optimizer == alone.optimizer // 4 and fsdp.peak < ddp.peak
    assert head.trained_parameters < alone.trained_parameters / 2 and head.parameters == alone.parameters
    assert ddp.images_per_step == alone.images_per_step == 32 and alone.image_tokens_per_step == 32 * 64


@pytest.mark.parametrize("name", [None, *ADAPTERS.names()])
def test_the_adapter_that_was_asked_for_is_counted(name, tiny_system):
    """As many parameters as the core that the swap builds has, the adapter's own apart."""
    base_core = tiny_system.core
    shapes = {k: v for k, v in base_core.config.items() if not k.startswith("_")}
    is_vae = name is None or ADAPTERS.get(name).kind == "latents"
    candidate = tiny_system.vae if is_vae else tiny_system.text_encoder
    real = swap_core(tiny_system, candidate, 0, name)
    spec = {"latents" if is_vae else "text": candidate.spec}
    core, mode = fake_core(shapes, **spec, adapter=name, base_ratio=8, image_size=32)
    options, strategy = TrainOptions(max_steps=1, batch_size=4), STRATEGIES.get("align+head")
    said = estimate(core, mode, strategy, options, latent_shape=(4, 4, 4), caption_length=16, world_size=1)

    def count(core):
        return sum(p.numel() for p in core.parameters())

    assert said.parameters == count(real) == count(base_core) + said.adapter_parameters
    assert (said.adapter_parameters > 0) == bool(adapters_of(real))
    assert said.trained_parameters == sum(p.numel() for g in strategy.parameter_groups(real) for p in g["params"])
    if name:  # the base's own, and one that is added to it
        for options_of in ({"adapters": [name]}, {"adapter": name}, {"adapters": [name], "adapter": name}):
            assert count(fake_core(shapes, **options_of)[0]) == count(real)


def test_an_adapter_of_the_other_joint_is_refused(tiny_system):
    shapes = {k: v for k, v in tiny_system.core.config.items() if not k.startswith("_")}
    with pytest.raises(SanakitError, match="SK0110.*joins tokens"):
        fake_core(shapes, latents=tiny_system.vae.spec, adapter="mlp-caption", base_ratio=8, image_size=32)


def test_sana_at_its_published_size_needs_no_memory_to_be_judged():
    shapes = SHAPES | {
        "in_channels": 32,
        "out_channels": 32,
        "num_layers": 20,
        "num_attention_heads": 70,
        "attention_head_dim": 32,
        "num_cross_attention_heads": 20,
        "cross_attention_head_dim": 112,
        "cross_attention_dim": 2240,
        "caption_channels": 2304,
        "sample_size": 32,
    }
    core, mode = fake_core(shapes)
    options = TrainOptions(max_steps=1, batch_size=64, precision="bf16", parallel="fsdp", gradient_checkpointing=True)
    said = estimate(
        core, mode, STRATEGIES.get("scratch"), options, latent_shape=(32, 32, 32), caption_length=300, world_size=8
    )
    assert 1.55e9 < said.parameters < 1.65e9
    assert said.checkpoint == 12 * said.parameters and said.weights * 8 == 4 * said.parameters
