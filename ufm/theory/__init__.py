"""Closed-form predictions: one module per family; this table says which exist, what they assume and whom to cite."""

from ufm.tables import Entry

# name -> Entry of a function Problem -> Prediction, in the order in which `predict` asks them.
# A prediction that is not about the problem answers applies=False with an empty reason; one that is about it but lacks
# a condition says which.
PREDICTIONS: dict[str, Entry] = {
    "balanced_contrast": Entry(
        "ufm.theory.etf:balanced",
        "cross-entropy, label smoothing, focal: simplex ETF with its scale",
        "balanced classes, d >= K-1, ridge or layer-peeled ball, any bias",
        "zhu2021",
    ),
    "balanced_mse": Entry(
        "ufm.theory.mse:balanced",
        "mean squared error: orthogonal frame without bias, ETF with a free bias, the transition with a ridge bias",
        "balanced classes, d >= K (K-1 with a free bias)",
        "zhou2022mse",
    ),
}
