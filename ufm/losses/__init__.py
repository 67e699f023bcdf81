"""The losses, one file each. `ufm.losses.protocol` says what a loss must provide."""

from ufm.tables import Entry

LOSSES = {
    "ce": Entry(
        "ufm.losses.ce:CrossEntropy",
        "cross-entropy: mass * logsumexp(z) - q.z",
        "convex in the logits; target rows non-negative (soft, mixup and multi-label rows are allowed)",
        "zhu2021",
    ),
    "mse": Entry(
        "ufm.losses.mse:MeanSquaredError",
        "squared error: 1/2 |z - y|^2",
        "convex in the logits; any real target rows",
        "zhou2022mse",
    ),
    "smoothing": Entry(
        "ufm.losses.smoothing:LabelSmoothing",
        "cross-entropy with smoothed labels: q = (1 - alpha) e_k + alpha/K",
        "convex in the logits",
        "zhou2022losses",
    ),
    "focal": Entry(
        "ufm.losses.focal:Focal",
        "focal loss: -(1 - p_k)^gamma log p_k",
        "not convex for gamma > 0; hard labels",
        "zhou2022losses",
    ),
    "supcon": Entry(
        "ufm.losses.supcon:SupervisedContrastive",
        "supervised contrastive loss of unit features, full batch; the classifier is the class means",
        "unit features; at least two samples of every class",
        "graf2021",
    ),
}
