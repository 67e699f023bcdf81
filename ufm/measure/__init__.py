"""Measures of neural collapse: one definition per name, on free features and on a network's features alike.

Importing this package imports no torch; the names below are resolved on first use.
"""

from __future__ import annotations

from ufm import lazy
from ufm.measure.names import MEASURES

_NAMES = {
    "collapse": "ufm.measure.measures:collapse",
    "Measures": "ufm.measure.measures:Measures",
    "ClassMoments": "ufm.measure.moments:ClassMoments",
    "from_moments": "ufm.measure.measures:from_moments",
    "cdnv_matrix": "ufm.measure.pairs:cdnv_matrix",
    "directional_cdnv": "ufm.measure.pairs:directional_cdnv",
    "pair_margins": "ufm.measure.pairs:pair_margins",
    "PairMargins": "ufm.measure.pairs:PairMargins",
    "class_covariances": "ufm.measure.pairs:class_covariances",
    "orthant_error": "ufm.measure.transfer:orthant_error",
    "few_shot_moments": "ufm.measure.transfer:few_shot_moments",
    "few_shot_error": "ufm.measure.transfer:few_shot_error",
    "few_shot_bound": "ufm.measure.transfer:few_shot_bound",
    "match_counts": "ufm.measure.finite:match_counts",
    "isotropic_correction": "ufm.measure.finite:isotropic_correction",
    "separation": "ufm.measure.layers:separation",
    "balance": "ufm.measure.layers:balance",
    "spectrum": "ufm.measure.rank:spectrum",
    "rank_effective": "ufm.measure.rank:rank_effective",
    "rank_stable": "ufm.measure.rank:rank_stable",
    "rank_numeric": "ufm.measure.rank:rank_numeric",
    "gnc_margin": "ufm.measure.margins:gnc_margin",
    "hardmax_margin": "ufm.measure.margins:hardmax_margin",
    "gram_coherence": "ufm.measure.margins:gram_coherence",
}
__all__ = ["MEASURES", *_NAMES]

lazy.attach(__name__, _NAMES)
