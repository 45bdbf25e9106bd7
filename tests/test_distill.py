"""Learning an encoder from the base: what the base does is the fixed point, and both ways come nearer to it."""

from dataclasses import replace

import pytest
import torch

from sanakit.adapters import ADAPTERS
from sanakit.alignment.text import pair_captions
from sanakit.assembly import LatentDiffusion
from sanakit.config import Config
from sanakit.errors import SanakitError
from sanakit.flow import interpolate
from sanakit.strategies.base import STRATEGIES
from sanakit.swap import distill
from sanakit.swap.distill import Teacher, embedding_mse, trajectories
from sanakit.swap.plan import applicable
from sanakit.swap.race import RaceSetup, advance, enter
from sanakit.training.loop import TrainOptions, fit, new_state

OPTIONS = TrainOptions(max_steps=60, batch_size=16, learning_rate=5e-3, warmup=5, schedule="constant")


@pytest.fixture
def base(tiny_system):
    """A core that listens to its captions."""
    torch.manual_seed(1)
    torch.nn.init.normal_(tiny_system.core.proj_out.weight, std=0.3)
    torch.nn.init.ones_(tiny_system.core.caption_norm.weight)
    return tiny_system


@pytest.fixture
def student(base):
    core = ADAPTERS.get("linear-caption").fit(base.core, base.text_encoder.spec, seed=7)
    return LatentDiffusion(vae=base.vae, text_encoder=base.text_encoder, core=core, image_size=32)


def test_a_drawn_batch_is_a_state_of_the_teacher(base, tiny_data):
    teacher = Teacher(base=base, data=tiny_data)
    teacher.states = trajectories(base, tiny_data.captions, prompts=20, num_steps=3)
    assert len(teacher.states) == 60 and (teacher.states.captions == -1).sum() == 6
    assert teacher.seconds == 0.0
    batch = teacher.draws(base, tiny_data, OPTIONS)(5, slice(None))
    with torch.no_grad():
        velocity = base.velocity(interpolate(batch.latents, batch.noise, batch.sigmas), batch.sigmas, batch.prompt)
    torch.testing.assert_close(velocity, batch.noise - batch.latents, atol=1e-4, rtol=1e-4)
    again = teacher.draws(base, tiny_data, OPTIONS)(5, slice(4, 8))
    torch.testing.assert_close(again.latents, batch.latents[4:8])


def test_the_trajectories_are_timed_and_drawn_before_the_first_step(base, student, tiny_data, monkeypatch):
    asked = []

    def few(base, captions, *, prompts, seed):
        asked.append(prompts)
        return trajectories(base, captions, prompts=8)

    monkeypatch.setattr(distill, "trajectories", few)
    teacher = Teacher(base=base, data=tiny_data)
    teacher.draws(student, tiny_data, OPTIONS)
    assert teacher.seconds > 0 and asked == [OPTIONS.max_steps * OPTIONS.batch_size // 8]
    kept = teacher.states
    teacher.draws(student, tiny_data, replace(OPTIONS, max_steps=10**6))
    assert teacher.states is kept
    Teacher(base=base, data=tiny_data).draws(student, tiny_data, replace(OPTIONS, max_steps=10**6))
    assert asked[1:] == [512]


def test_distillation_races_by_default_where_the_text_encoder_is_swapped(base):
    names = Config().smoke.strategies
    assert "distill" in applicable(names, base, base.text_encoder) and "distill" not in applicable(
        names, base, base.vae
    )


def test_distillation_lowers_the_distance_and_leaves_the_core(base, student, tiny_data):
    teacher = Teacher(base=base, data=tiny_data)
    teacher.states = trajectories(base, tiny_data.captions, prompts=40, num_steps=4)
    groups = STRATEGIES.get("distill").parameter_groups(student.core)
    frozen = {k: p.clone() for k, p in student.core.named_parameters() if not p.requires_grad}
    losses = []
    state = new_state(student.core, groups, OPTIONS)

    def keep(step, loss, batch, predicted):
        return losses.append(loss)

    fit(student, tiny_data, OPTIONS, state, after_step=keep, draw=teacher.draws(student, tiny_data, OPTIONS))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert frozen and all(torch.equal(frozen[k], p) for k, p in student.core.named_parameters() if k in frozen)


def test_embedding_mse_lowers_its_loss(base, student, tiny_data):
    paired = pair_captions(tiny_data.captions, tiny_data.captions, [], base.text_encoder, base.text_encoder)
    first, last = embedding_mse(student.core, base.core, paired, steps=40)["embedding_mse"]
    assert last < 0.7 * first


def test_a_race_without_a_teacher_refuses_to_distil(student, tiny_data):
    class Flat:
        relative = staticmethod(lambda result: result.losses.mean(0).numpy())

    setup = RaceSetup(
        data=tiny_data, test=tiny_data, target=Flat(), count=16, options=TrainOptions(max_steps=1, batch_size=32)
    )
    arm = enter(setup, STRATEGIES.get("distill"), replace(student), budget=8)
    with pytest.raises(SanakitError, match="SK0110.*teacher"):
        advance(setup, arm, 4)
