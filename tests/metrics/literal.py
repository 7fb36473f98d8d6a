"""Every metric as its definition says, in float64, with n × n matrices and loops: slow, and easy to check by eye.

Nothing here is shared with the package. `benchmarks/metrics.py` times it, too.
"""

import numpy as np
from scipy import stats
from scipy.spatial.distance import pdist


def platonic(x):
    """Clamp at the 95th percentile of |features|, one number for the matrix; then rows of length 1."""
    x = np.asarray(x, np.float64)
    limit = np.sort(np.abs(x), axis=None)[int(0.95 * x.size)]
    x = np.clip(x, -limit, limit)
    return x / np.sqrt((x**2).sum(1, keepdims=True))


def linear_kernel(x):
    x = np.asarray(x, np.float64)
    return x @ x.T


def rbf_kernel(x, sigma=1.0):
    """Bandwidth: sigma times the median of the distances of pairs, the lower one of two middle ones."""
    distances = pdist(np.asarray(x, np.float64))
    s = sigma * np.sort(distances)[(len(distances) - 1) // 2]
    kernel = np.ones((len(x), len(x)))
    kernel[np.triu_indices(len(x), 1)] = np.exp(-(distances**2) / (2 * s**2))
    return np.triu(kernel) + np.triu(kernel, 1).T


def biased_hsic(k, m):
    n = len(k)
    h = np.eye(n) - np.ones((n, n)) / n
    return np.trace(k @ h @ m @ h) / (n - 1) ** 2


def unbiased_hsic(k, m):
    """Song et al. (2012), Eq. 5; the second kernel is transposed where that matters."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    middle = k.sum() * m.sum() / ((n - 1) * (n - 2))
    return ((k * m.T).sum() + middle - 2 / (n - 2) * (k @ m).sum()) / (n * (n - 3))


def aligned(hsic, k, m):
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def cka(x, y):
    return aligned(biased_hsic, linear_kernel(x), linear_kernel(y))


def unbiased_cka(x, y):
    return aligned(unbiased_hsic, linear_kernel(x), linear_kernel(y))


def rbf_cka(x, y, sigma=1.0):
    return aligned(biased_hsic, rbf_kernel(x, sigma), rbf_kernel(y, sigma))


def unbiased_rbf_cka(x, y, sigma=1.0):
    return aligned(unbiased_hsic, rbf_kernel(x, sigma), rbf_kernel(y, sigma))


def products(x):
    """Row by row, so that equal rows have equal products to the last bit; the benchmark puts x @ x.T in its place."""
    return np.array([(x * row).sum(1) for row in x])


def neighbors(x, k):
    """By inner product, not oneself, ties to the lower index."""
    nearness = products(np.asarray(x, np.float64))
    np.fill_diagonal(nearness, -np.inf)
    return np.argsort(-nearness, axis=1, kind="stable")[:, :k]


def mutual_knn(x, y, k=10):
    pairs = zip(neighbors(x, k), neighbors(y, k), strict=True)
    return np.mean([len(set(a) & set(b)) / k for a, b in pairs])


def cycle_knn(x, y, k=10):
    a, b = neighbors(x, k), neighbors(y, k)
    return np.mean([any(i in a[j] for j in b[i]) for i in range(len(a))])


def longest_common_subsequence(a, b):
    length = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, u in enumerate(a):
        for j, v in enumerate(b):
            length[i + 1][j + 1] = length[i][j] + 1 if u == v else max(length[i][j + 1], length[i + 1][j])
    return length[-1][-1]


def edit_distance(a, b):
    cost = [[i + j for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i, u in enumerate(a):
        for j, v in enumerate(b):
            cost[i + 1][j + 1] = min(cost[i][j + 1] + 1, cost[i + 1][j] + 1, cost[i][j] + (u != v))
    return cost[-1][-1]


def lcs_knn_published(x, y, k=10):
    pairs = zip(neighbors(x, k).tolist(), neighbors(y, k).tolist(), strict=True)
    return np.mean([longest_common_subsequence(a, b) for a, b in pairs])


def lcs_knn(x, y, k=10):
    return lcs_knn_published(x, y, k) / k


def edit_distance_knn(x, y, k=10):
    pairs = zip(neighbors(x, k).tolist(), neighbors(y, k).tolist(), strict=True)
    return 1 - np.mean([edit_distance(a, b) for a, b in pairs]) / k


def mask(lists):
    chosen = np.zeros((len(lists), len(lists)))
    for i, row in enumerate(lists):
        chosen[i, row] = 1
    return chosen


def cknna(x, y, k=10):
    """Huh et al. (2024), Eq. 16."""
    kernels = [linear_kernel(x), linear_kernel(y)]
    near = [mask(neighbors(x, k)), mask(neighbors(y, k))]
    k_c, m_c = (kernel - kernel.mean(1, keepdims=True) for kernel in kernels)
    cross = (near[0] * near[1] * k_c * m_c).sum()
    return cross / np.sqrt((near[0] * k_c * k_c).sum() * (near[1] * m_c * m_c).sum())


def cknna_published(x, y, k=10):
    """Kernels set to zero but for common neighbours, then the unbiased HSIC."""
    a, b = mask(neighbors(x, k)), mask(neighbors(y, k))
    kernel_x, kernel_y = linear_kernel(x), linear_kernel(y)
    cross = unbiased_hsic(a * b * kernel_x, a * b * kernel_y)
    own = unbiased_hsic(a * kernel_x, a * kernel_x) * unbiased_hsic(b * kernel_y, b * kernel_y)
    return cross / np.sqrt(own)


def principal_basis(x, n_components=None):
    x = np.asarray(x, np.float64)
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    rank = (s > s[0] * max(x.shape) * np.finfo(np.float64).eps).sum()
    return u[:, : min(rank, n_components or rank)]


def cca(x, y):
    return np.linalg.svd(principal_basis(x).T @ principal_basis(y), compute_uv=False).mean()


def svcca(x, y, n_components=10):
    bases = principal_basis(x, n_components), principal_basis(y, n_components)
    return np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean()


def pwcca(x, y):
    """Morcos et al. (2018): weights are sums over the features of x of |⟨canonical variate, feature⟩|."""
    basis = principal_basis(x)
    rotation, correlations, _ = np.linalg.svd(basis.T @ principal_basis(y), full_matrices=False)
    features = np.asarray(x, np.float64) - np.mean(x, 0, dtype=np.float64)
    weights = [sum(abs(variate @ feature) for feature in features.T) for variate in (basis @ rotation).T]
    return np.average(correlations, weights=weights)


def procrustes(x, y):
    x, y = (np.asarray(v, np.float64) - np.mean(v, 0, dtype=np.float64) for v in (x, y))
    return np.linalg.svd(x.T @ y, compute_uv=False).sum() / np.sqrt((x**2).sum() * (y**2).sum())


def rsa(x, y, dissimilarity="correlation", compare="spearman"):
    """Dissimilarities that differ in their 13th decimal are ties: with two features, correlations are 1 or -1."""
    distances = [pdist(np.asarray(v, np.float64), dissimilarity).round(12) for v in (x, y)]
    correlation = stats.spearmanr if compare == "spearman" else stats.pearsonr
    return correlation(*distances).statistic
