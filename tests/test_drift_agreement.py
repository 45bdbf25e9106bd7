"""Every statistic's plain value, before its permutation null is taken away,
against a library that computes the same."""

import numpy as np
import ot
import pytest
import torch
from scipy import linalg, stats
from scipy.fft import dctn
from scipy.spatial.distance import cdist, pdist, squareform
from sklearn.covariance import empirical_covariance, shrunk_covariance
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import rbf_kernel
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from sanakit.drift import DRIFT
from sanakit.drift.channel_moments import ChannelMoments
from sanakit.drift.features import latent_blocks
from sanakit.drift.permutation import holm, permutation_test
from sanakit.drift.spectra import cosine_transform
from sanakit.drift.statistics.frechet import frechet_distance
from sanakit.drift.statistics.gaussian_kl import columns_kl
from sanakit.drift.statistics.gaussian_kl_full import gaussian_divergence, group_gaussians, labelled_kl, shrunk
from sanakit.drift.statistics.mmd import BANDWIDTHS, kernel, labelled_mean_difference
from sanakit.drift.statistics.psi import BINS, HALF_A_COUNT, columns_psi, in_bins
from sanakit.drift.statistics.rank_max import columns_shift, normal_scores
from sanakit.drift.statistics.sliced_wasserstein import directions, labelled_wasserstein
from sanakit.drift.statistics.spectrum_kl import ring_terms, shapes

GENERATOR = np.random.default_rng(0)
X, Y = GENERATOR.normal(size=(60, 3)), GENERATOR.normal(0.4, 1.3, size=(50, 3))
POOLED, LABELS = np.concatenate([X, Y]), np.repeat([0.0, 1.0], [60, 50])[None]


def test_sliced_wasserstein_is_that_of_pot_on_the_same_directions():
    basis = directions(3, seed=5)
    wanted = ot.sliced_wasserstein_distance(X, Y, p=1, projections=basis)
    assert labelled_wasserstein(POOLED @ basis, LABELS)[0] == pytest.approx(wanted, rel=1e-5)


def test_along_one_line_it_is_the_exact_transport_cost():
    for column in range(3):
        x, y = X[:, column], Y[:, column]
        distance = labelled_wasserstein(POOLED[:, [column]], LABELS)[0]
        assert distance == pytest.approx(float(ot.wasserstein_1d(x, y, p=1)), rel=1e-5)
        assert distance == pytest.approx(ot.emd2([], [], np.abs(x[:, None] - y)), rel=1e-5)  # linear program
        assert distance == pytest.approx(stats.wasserstein_distance(x, y), rel=1e-5)


def test_frechet_is_the_squared_bures_distance_of_pot_and_scipy():
    covariances = np.cov(X.T), np.cov(Y.T)
    means = X.mean(0), Y.mean(0)
    distance = frechet_distance(means[0][None], covariances[0][None], means[1][None], covariances[1][None])[0]
    assert distance == pytest.approx(ot.gaussian.bures_wasserstein_distance(*means, *covariances) ** 2)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    assert distance == pytest.approx(((means[0] - means[1]) ** 2).sum() + np.trace(sum(covariances) - 2 * root))


def test_energy_and_mmd():
    one = POOLED[:, :1]
    energy = labelled_mean_difference(-squareform(pdist(one)), LABELS)[0]
    assert energy == pytest.approx(stats.energy_distance(X[:, 0], Y[:, 0]) ** 2, rel=1e-5)
    energy = labelled_mean_difference(-squareform(pdist(POOLED)), LABELS)[0]
    assert energy == pytest.approx(2 * cdist(X, Y).mean() - cdist(X, X).mean() - cdist(Y, Y).mean())
    median = np.median(pdist(POOLED))
    gammas = [1 / (2 * (s * median) ** 2) for s in BANDWIDTHS]
    np.testing.assert_allclose(kernel(POOLED), np.mean([rbf_kernel(POOLED, gamma=g) for g in gammas], 0), atol=1e-6)

    def plain(a, b):
        return np.mean([rbf_kernel(a, b, gamma=g).mean() for g in gammas])

    distance = labelled_mean_difference(kernel(POOLED), LABELS)[0]
    assert distance == pytest.approx(plain(X, X) + plain(Y, Y) - 2 * plain(X, Y), rel=1e-4)


def test_gaussian_divergences_and_shrinkage():
    mean_r, cov_r, mean_c, cov_c = group_gaussians(POOLED, LABELS)
    np.testing.assert_allclose(cov_r[0], empirical_covariance(X))
    np.testing.assert_allclose(shrunk(cov_r, 60)[0], shrunk_covariance(cov_r[0], shrinkage=3 / 63), atol=1e-8)

    def normal(mean, cov):
        return MultivariateNormal(torch.from_numpy(mean[0]), torch.from_numpy(cov[0]))

    reference, current = normal(mean_r, cov_r), normal(mean_c, cov_c)
    assert gaussian_divergence(mean_r, cov_r, mean_c, cov_c)[0] == pytest.approx(
        float(kl_divergence(current, reference))
    )
    scaled = (POOLED - POOLED.mean(0)) / POOLED.std(0)
    sides = group_gaussians(scaled, LABELS)
    sides = (sides[0], shrunk(sides[1], 60), sides[2], shrunk(sides[3], 50))
    reference, current = normal(*sides[:2]), normal(*sides[2:])
    both = float(kl_divergence(current, reference) + kl_divergence(reference, current)) / 2
    assert labelled_kl(POOLED, LABELS, symmetric=True)[0] == pytest.approx(both, rel=1e-6)

    def one(rows):
        return Normal(torch.from_numpy(rows.mean(0)), torch.from_numpy(rows.std(0)))

    np.testing.assert_allclose(columns_kl(POOLED, LABELS)[0], kl_divergence(one(Y), one(X)), rtol=1e-6)


def test_entropies_of_bins_and_divergences_of_spectra():
    edges = np.quantile(POOLED[:, 0], np.linspace(0, 1, BINS + 1))
    p, q = (np.histogram(side[:, 0], edges)[0] + HALF_A_COUNT for side in (X, Y))
    wanted = stats.entropy(p, q) + stats.entropy(q, p)
    assert columns_psi(in_bins(POOLED), LABELS)[0, 0] == pytest.approx(wanted, rel=1e-5)
    log_power = shapes(POOLED)
    np.testing.assert_allclose(log_power.mean(1), 0, atol=1e-12)

    def spread(rows):
        return Normal(torch.zeros(3, dtype=torch.float64), torch.from_numpy(np.exp(rows.mean(0) / 2)))

    wanted = kl_divergence(spread(log_power[60:]), spread(log_power[:60]))  # of Gaussian coefficients with those powers
    np.testing.assert_allclose(ring_terms(log_power, LABELS)[0], wanted, rtol=1e-6)


def test_the_cosine_transform_is_that_of_scipy():
    values = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(cosine_transform(values), dctn(values.numpy(), axes=(2, 3), norm="ortho"), atol=1e-5)


def test_ranks_means_and_the_classifier(monkeypatch):
    t = max(stats.ttest_ind(Y, X, equal_var=False).statistic, key=abs)
    assert DRIFT.get("welch-max")(X, Y, 0.05).value == pytest.approx(t)
    scores = stats.norm.ppf(stats.rankdata(POOLED, axis=0) / (len(POOLED) + 1))
    np.testing.assert_allclose(normal_scores(POOLED), stats.zscore(scores), atol=1e-6)
    shift = columns_shift(normal_scores(POOLED), LABELS)[0] / np.sqrt(len(POOLED) / (len(POOLED) - 1))
    pooled_variance = [stats.ttest_ind(s[60:], s[:60]).statistic for s in scores.T]
    # a permutation z of scores and Student's t of them are one statistic: t = z sqrt((N - 2) / (N - 1 - z^2))
    np.testing.assert_allclose(shift * np.sqrt(108 / (109 - shift**2)), pooled_variance, rtol=1e-5)
    scored = []
    test = stats.mannwhitneyu
    monkeypatch.setattr(
        stats, "mannwhitneyu", lambda *sides, **options: (scored.extend(sides), test(*sides, **options))[1]
    )
    shift = DRIFT.get("classifier")(X, Y, 0.05).value
    truth = np.repeat([1, 0], [len(side) for side in scored])
    assert shift == pytest.approx(roc_auc_score(truth, np.concatenate(scored))) and shift > 0.5


def test_the_permutation_p_value_is_that_of_scipy():
    def mean(pooled, labels):
        return (labels @ pooled[:, 0]) / labels.sum(1) - ((1 - labels) @ pooled[:, 0]) / (1 - labels).sum(1)

    p_value = permutation_test(mean, X, Y, seed=0).p_value

    def difference(x, y, axis):
        return y.mean(axis) - x.mean(axis)

    wanted = stats.permutation_test(
        (X[:, 0], Y[:, 0]), difference, alternative="greater", vectorized=True, n_resamples=4999, rng=1
    ).pvalue
    assert p_value == pytest.approx(wanted, abs=4 * np.sqrt(wanted * (1 - wanted) / 999) + 1e-3)
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])  # Holm (1979), by hand


def test_moments_of_streams_and_of_single_images():
    moments = ChannelMoments.of(torch.from_numpy(Y[:20])).merge(ChannelMoments.of(torch.from_numpy(Y[20:])))
    np.testing.assert_allclose(moments.covariance, np.cov(Y.T, bias=True))
    np.testing.assert_allclose(moments.correlation, np.corrcoef(Y.T))
    np.testing.assert_allclose(moments.skewness, stats.skew(Y))
    np.testing.assert_allclose(moments.kurtosis, stats.kurtosis(Y))
    latents = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).exp()
    blocks, flat = latent_blocks(latents), latents.flatten(2).numpy().astype(float)
    np.testing.assert_allclose(blocks["skewness"], stats.skew(flat, 2), rtol=1e-4)
    np.testing.assert_allclose(blocks["kurtosis"], stats.kurtosis(flat, 2), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(blocks["log-sd"], np.log(flat.std(2)), rtol=1e-4)
    wanted = np.arctanh(np.stack([np.corrcoef(image)[np.triu_indices(3, 1)] for image in flat]))
    np.testing.assert_allclose(blocks["correlation"], wanted, atol=1e-4)
