"""The table of measures: each name fixes one normalisation. Imports no torch, so that the commands can list it."""

from __future__ import annotations

from ufm.tables import Entry

_COLLAPSE = "ufm.measure.measures:collapse"


def _row(definition: str, convention: str, reference: str = "", target: str = _COLLAPSE) -> Entry:
    return Entry(target, definition, convention, reference)


# name -> Entry(target, summary = the definition, assumptions = whose convention it is, reference).
# mu_k class means, mu_C their mean, mu_S the sample mean, M = [mu_k - mu_C] (K, d),
# Sigma_W = (1/N) sum (h - mu_y)(h - mu_y)^T, Sigma_B = M^T M / K.
MEASURES: dict[str, Entry] = {
    "nc1_pinv": _row("Tr(Sigma_W Sigma_B^+)/K", "Zhu 2021 (balanced), Kothapalli; the default", "zhu2021"),
    "nc1_pinv_sum": _row("Tr(Sigma_W Sigma_B^+), no /K", "Papyan's code; He & Su's D (centred by mu_S)", "papyan2020"),
    "nc1_pinv_sample": _row("Tr(Sigma_W Sigma_B^+)/K, Sigma_B about the sample mean", "common public code when imbalanced"),
    "nc1_weighted": _row("Tr(Sigma_W Sigma_B^+), Sigma_B = sum n_k/N (mu_k - mu_S)(.)^T", "He & Su, imbalanced", "hesu2023"),
    "nc1_trace": _row("Tr Sigma_W / Tr Sigma_B", "quotient form"),
    "nc1_total": _row("Tr Sigma_W / Tr Sigma_T, in [0, 1]", "Wu & Mondelli 2025", "wu2025"),
    "cdnv": _row("mean over pairs of (v_i + v_j)/(2 |mu_i - mu_j|^2), v = E|h - mu|^2", "Galanti 2022", "galanti2022"),
    "vci": _row("1 - Tr(Sigma_T^+ Sigma_Bw)/rank Sigma_Bw, Sigma_T = Sigma_W + Sigma_Bw, in [0, 1]", "Xu & Liu 2023", "xu2023"),
    "nc2_equinorm_means": _row("std/mean (ddof 1) of |mu_k - mu_C|", "Papyan 2020", "papyan2020"),
    "nc2_equinorm_weights": _row("std/mean (ddof 1) of |w_k|", "Papyan 2020", "papyan2020"),
    "nc2_equiangular_means": _row("mean over i != j of |cos(mu_i - mu_C, mu_j - mu_C) + 1/(K-1)|", "Papyan 2020", "papyan2020"),
    "nc2_equiangular_weights": _row("mean over i != j of |cos(w_i, w_j) + 1/(K-1)|", "Papyan 2020", "papyan2020"),
    "nc2_etf_means": _row("|G/|G| - (I - J/K)/sqrt(K-1)|_F, G = M M^T", "Zhu 2021, applied to means", "zhu2021"),
    "nc2_etf_weights": _row("|G/|G| - (I - J/K)/sqrt(K-1)|_F, G = W W^T", "Zhu 2021", "zhu2021"),
    "nc2_to_prediction": _row(
        "|G/|G| - P/|P||_F to a predicted Gram P; G about mu_C if P is centred, else about 0", "this package"
    ),
    "nc3_papyan": _row("|W/|W|_F - M/|M|_F|_F^2", "Papyan 2020", "papyan2020"),
    "nc3_zhu": _row("|W M^T/|W M^T|_F - (I - J/K)/sqrt(K-1)|_F", "Zhu 2021", "zhu2021"),
    "nc3_cosine": _row("mean_k of 1 - cos(w_k, mu_k - mu_C)", "GNC3"),
    "bias_collapse": _row("|W mu_C + b|", "Zhu 2021", "zhu2021"),
    "nc4_disagreement": _row(
        "share of samples whose argmax of W h + b is not the nearest class mean", "Papyan 2020", "papyan2020"
    ),
    "ncc_error": _row("share of samples whose nearest class mean is not their label's", "(not NC4)"),
    "nc5": _row("mean_k |cos(mu_k - mu_C, mu_OOD - mu_C)|", "Ammar 2024; both centred by mu_C", "ammar2024"),
    "gnc_margin": _row(
        "min_k dist(u_k, conv{u_j, j != k}), u_k = (mu_k - mu_C)/|.|", "Jiang 2023", "jiang2023", "ufm.measure.margins:gnc_margin"
    ),
    "hardmax_margin": _row("min over k != j of (w_k - w_j).u_k, w and u unit vectors", "Jiang 2023", "jiang2023"),
    "gram_coherence": _row("largest cos(mu_i - mu_C, mu_j - mu_C), i != j", "Jiang 2023", "jiang2023"),
    "rank_effective": _row("exp of the entropy of the normalised singular values of [h_i - mu_S]", "Roy & Vetterli 2007"),
    "rank_stable": _row("|A|_F^2/|A|^2, A = [h_i - mu_S]", "stable rank"),
    "rank_numeric": _row("number of singular values of [h_i - mu_S] above 1e-2 of the largest", "this package"),
    "nc1_pinv_strong": _row("nc1_pinv with train means and train Sigma_B, own labels", "test; centres = train"),
    "nc1_pinv_weak": _row("the same about the nearest train mean, whatever the label", "test; centres = train"),
    "nc1_pinv_between": _row("E|mu_yhat - mu_y|_B^2/K; 2 ncc_error when rank Sigma_B = K-1", "test; centres = train"),
    "nc1_pinv_cross": _row("(2/K) E<h - mu_yhat, mu_yhat - mu_y>_B; strong = weak + between + cross", "test; centres = train"),
    "ncc_error_between": _row(
        "share whose nearest train mean in the Sigma_B^+ metric is not their label's", "test; centres = train"
    ),
    "cdnv_strong": _row("cdnv with test scatter about train means over train-mean distances", "test; centres = train"),
    "spectrum": _row("the singular values, descending", "-", "", "ufm.measure.rank:spectrum"),
    "separation": _row(
        "slope rho and Pearson r of log D_l over layers", "He & Su 2023", "hesu2023", "ufm.measure.layers:separation"
    ),
    "balance": _row(
        "per layer lambda_l |W_l|_F^2 and -<Z, dfit/dZ>, equal at a stationary point",
        "this package",
        "",
        "ufm.measure.layers:balance",
    ),
}

NEEDS_SCATTER = frozenset({"vci", "rank_effective", "rank_stable", "rank_numeric"})
TRAIN_CENTRED = frozenset(
    {"nc1_pinv_strong", "nc1_pinv_weak", "nc1_pinv_between", "nc1_pinv_cross", "ncc_error", "ncc_error_between", "cdnv_strong"}
)
NOT_SCALAR = frozenset({"spectrum", "separation", "balance"})
ON_REQUEST = frozenset({"gnc_margin"})  # K small quadratic programs: computed when named
COLLAPSE = frozenset(MEASURES) - NOT_SCALAR
DEFAULT = COLLAPSE - ON_REQUEST
