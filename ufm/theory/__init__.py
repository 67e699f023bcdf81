"""Closed-form predictions: one module per family; these tables say which exist, what they assume and whom to cite."""

from ufm.prediction import DERIVED, EVIDENCE, STATED
from ufm.tables import Entry

# name -> Entry of a function Problem -> Prediction, in the order in which `predict` asks them.
# One that is not about the problem answers applies=False with an empty reason; one that is about it but lacks a condition
# says which.
PREDICTIONS: dict[str, Entry] = {
    "balanced_contrast": Entry(
        "ufm.theory.etf:balanced",
        "cross-entropy, label smoothing, focal: simplex ETF with its scale",
        "balanced classes, d >= K-1, ridge or layer-peeled ball, any bias",
        "zhu2021",
    ),
    "balanced_mse": Entry(
        "ufm.theory.mse:balanced",
        "squared error: orthogonal frame without bias, ETF with a free bias, the transition with a ridge bias",
        "balanced classes, d >= K (K-1 with a free bias)",
        "zhou2022mse",
    ),
    "orthogonal_mse": Entry(
        "ufm.theory.mse:orthogonal",
        "squared error without bias: general orthogonal frame (GOF), dead classes",
        "one-hot labels, any counts and class weights, free or non-negative features, ridge or layer-peeled ball",
        "dang2023",
    ),
    "ball_mse": Entry(
        "ufm.theory.mse:balanced_ball",
        "layer-peeled squared error with a free bias: ETF",
        "balanced classes, d >= K-1",
        "zhou2022mse",
    ),
    "symmetric_mse": Entry(
        "ufm.theory.symmetric:squared_error",
        "squared error with a ridge bias on class-symmetric targets: the mean mode splits off",
        "every permutation of a target row equally often, one row sum, ridge",
        "fisher2024",
    ),
    "soft_threshold_mse": Entry(
        "ufm.theory.mse:soft_threshold",
        "squared error: soft-thresholded singular values of the centred targets (regression NRC, imbalance, d < K)",
        "any targets, counts and d; no bias or a free one; ridge",
        "andriopoulos2024",
    ),
    "two_sizes": Entry(
        "ufm.theory.imbalance:step",
        "cross-entropy with two class sizes: block structure, minority collapse",
        "no bias, rank of the optimum <= d, ridge or layer-peeled ball",
        "hong2023",
    ),
    "nonnegative_contrast": Entry(
        "ufm.theory.nonnegative:contrast",
        "cross-entropy, smoothing, focal on non-negative features: orthogonal means, dead classes",
        "any counts without bias (balanced: any bias), d >= live classes, ridge or layer-peeled ball",
        "dang2024",
    ),
    "nonnegative_mse": Entry(
        "ufm.theory.nonnegative:squared_error",
        "squared error with a bias, free or penalised, on non-negative features: orthogonal means",
        "balanced classes, d >= K, ridge",
        "tirer2022",
    ),
    "unit_norm": Entry(
        "ufm.theory.codes:sphere",
        "unit-norm W and features: simplex for K <= d+1, softmax codes above",
        "balanced classes, a temperature",
        "lu2020",
    ),
    "rank_limited": Entry(
        "ufm.theory.codes:rank_limited",
        "cross-entropy with d < K-1: scaled polygon or cross-polytope (evidence only)",
        "balanced classes, d = 2 and K <= 13, or K = 2d <= 32, no bias, ridge",
        "jiang2023",
    ),
    "contrastive": Entry(
        "ufm.theory.contrastive:supervised",
        "supervised contrastive loss: orthogonal frame with non-negative features, simplex without",
        "unit features, full batch; balanced classes where features are free",
        "kini2023",
    ),
    "soft_targets": Entry(
        "ufm.theory.symmetric:soft_targets",
        "cross-entropy with soft, mixup or multi-label targets: simplex W, one convex problem for the scales",
        "every permutation of a target row equally often, d >= K-1, any bias, ridge",
        "li2023",
    ),
    "zero": Entry(
        "ufm.theory.zero:zero",
        "the zero solution, where it is optimal",
        "convex loss, ridge; any counts, bias, targets, weights, logit scale and offset, d",
        "hong2023",
    ),
}

# name -> {how far the closed form may be trusted: where}; `Prediction.status` says which holds for a problem.
STATUS: dict[str, dict[str, str]] = {
    **{name: {DERIVED: ""} for name in PREDICTIONS},
    "balanced_contrast": {DERIVED: "", EVIDENCE: "focal loss beyond the range of its lower bound, s (K-1) < 1"},
    "nonnegative_contrast": {DERIVED: "", EVIDENCE: "focal loss beyond the range of its lower bound"},
    "unit_norm": {DERIVED: "K <= d+1 (focal loss: within its lower bound)", EVIDENCE: "K > d+1: softmax codes"},
    "rank_limited": {EVIDENCE: "nonzero solutions, up to the sizes compared with searches", DERIVED: "the zero solution"},
    "contrastive": {STATED: ""},
}

# name -> relative tolerance of the predicted loss: the largest that its `Prediction.tolerance` takes.
TOLERANCE: dict[str, float] = {**dict.fromkeys(PREDICTIONS, 1e-10), "balanced_mse": 1e-12}

# name -> Entry of a function Problem -> Prediction of that structure at its own best scale, or applies=False.
STRUCTURES: dict[str, Entry] = {
    "etf": Entry("ufm.theory.candidates:etf", "simplex equiangular tight frame", "d >= K-1", "zhu2021"),
    "of": Entry("ufm.theory.candidates:orthogonal_frame", "orthogonal frame", "d >= K", "tirer2022"),
    "gof": Entry("ufm.theory.candidates:general_orthogonal_frame", "orthogonal, lengths by class size", "d >= K", "dang2023"),
    "seli": Entry("ufm.theory.candidates:seli", "simplex-encoded labels interpolation", "d >= K-1", "thrampoulidis2022"),
    "code": Entry("ufm.theory.candidates:code", "symmetric softmax code", "K > d+1", "jiang2023"),
    "zero": Entry("ufm.theory.zero:candidate", "the zero solution with its best bias", "convex loss, ridge", "hong2023"),
}
