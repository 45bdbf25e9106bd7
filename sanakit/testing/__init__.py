"""Contract checks for the tests of a plugin: one call a component, no data and no network.

    from sanakit.testing import check_vae
    from our_package.vae import OursF8C4

    def test_the_contract():
        check_vae(OursF8C4)

Each raises SK0115 for what breaks the contract, with what was found, what is expected and how to correct it. What the
component itself raises is passed on, so that its traceback names the line.
"""

from sanakit.testing.dataset import check_dataset
from sanakit.testing.gate import check_gate
from sanakit.testing.metric import check_metric
from sanakit.testing.statistic import check_statistic
from sanakit.testing.strategy import check_strategy
from sanakit.testing.text_encoder import check_text_encoder
from sanakit.testing.vae import check_vae

__all__ = [
    "check_dataset",
    "check_gate",
    "check_metric",
    "check_statistic",
    "check_strategy",
    "check_text_encoder",
    "check_vae",
]
