"""What makes a component, or a base, another one than it was: hashes of everything that results depend on."""

from sanakit.assembly import LatentDiffusion
from sanakit.hashing import hash_module, hash_record
from sanakit.text_encoders import TextEncoder
from sanakit.vaes import VAE


def identity_of(component: VAE | TextEncoder) -> str:
    """The component's fingerprint with what the key of its cached encodings leaves out: a VAE's normalisation, the null
    embedding that a base brought for its text encoder."""
    if isinstance(component, VAE):
        return hash_record([component.weights_hash(), component.applied_stats])
    identity, null = component.fingerprint(), component.kept_null
    return identity if null is None else hash_record([identity, null.embeds.tolist(), null.mask.tolist()])


def fingerprint_base(base: LatentDiffusion) -> dict[str, str]:
    """Hashes of the base's weights and its flow shift. A base changed in place is another."""
    return {
        "core": hash_module(base.core, hash_record({k: v for k, v in base.core.config.items() if k[0] != "_"})),
        "vae": identity_of(base.vae),
        "text_encoder": identity_of(base.text_encoder),
        "flow_shift": f"{base.flow_shift:g}",
    }
