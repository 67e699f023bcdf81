"""Every work the package cites, and BibTeX for it. Imports nothing.

A field is left out where it is not certain; no page, volume or DOI is given for that reason.
"""

REFERENCES: dict[str, dict[str, str]] = {
    "alcala2026": {
        "title": "Neural collapse in the orthoplex regime",
        "author": "James Alcala and Rayna Andreeva and Vladimir A. Kobzar and Dustin G. Mixon and Sanghoon Na and "
        "Shashank Sule and Yangxinyu Xie",
        "year": "2026",
        "eprint": "2603.20587",
    },
    "ammar2024": {
        "title": "NECO: NEural Collapse Based Out-of-distribution detection",
        "author": 'Mou{\\"i}n Ben Ammar and Nacim Belkhir and Sebastian Popescu and Antoine Manzanera and Gianni Franchi',
        "year": "2024",
        "eprint": "2310.06823",
        "venue": "International Conference on Learning Representations",
    },
    "andriopoulos2024": {
        "title": "The Prevalence of Neural Collapse in Neural Multivariate Regression",
        "author": "George Andriopoulos and Zixuan Dong and Li Guo and Zifan Zhao and Keith Ross",
        "year": "2024",
        "eprint": "2409.04180",
        "venue": "Advances in Neural Information Processing Systems",
    },
    "beaglehole2024": {
        "title": "Average gradient outer product as a mechanism for deep neural collapse",
        "author": "Daniel Beaglehole and Peter S{\\'u}ken{\\'i}k and Marco Mondelli and Mikhail Belkin",
        "year": "2024",
        "eprint": "2402.13728",
        "venue": "Advances in Neural Information Processing Systems",
    },
    "behnia2023": {
        "title": "On the Implicit Geometry of Cross-Entropy Parameterizations for Label-Imbalanced Data",
        "author": "Tina Behnia and Ganesh Ramachandra Kini and Vala Vakilian and Christos Thrampoulidis",
        "year": "2023",
        "eprint": "2303.07608",
        "venue": "International Conference on Artificial Intelligence and Statistics",
    },
    "benshaul2022": {
        "title": "Nearest Class-Center Simplification through Intermediate Layers",
        "author": "Ido Ben-Shaul and Shai Dekel",
        "year": "2022",
        "eprint": "2201.08924",
    },
    "bertsekas1982": {
        "title": "Projected Newton Methods for Optimization Problems with Simple Constraints",
        "author": "Dimitri P. Bertsekas",
        "year": "1982",
        "venue": "SIAM Journal on Control and Optimization",
    },
    "byrd1995": {
        "title": "A Limited Memory Algorithm for Bound Constrained Optimization",
        "author": "Richard H. Byrd and Peihuang Lu and Jorge Nocedal and Ciyou Zhu",
        "year": "1995",
        "venue": "SIAM Journal on Scientific Computing",
    },
    "cao2022": {
        "title": "Benign Overfitting in Two-layer Convolutional Neural Networks",
        "author": "Yuan Cao and Zixiang Chen and Mikhail Belkin and Quanquan Gu",
        "year": "2022",
        "eprint": "2202.06526",
        "venue": "Advances in Neural Information Processing Systems",
    },
    "cho2009": {
        "title": "Kernel Methods for Deep Learning",
        "author": "Youngmin Cho and Lawrence K. Saul",
        "year": "2009",
        "venue": "Advances in Neural Information Processing Systems",
    },
    "dang2023": {
        "title": "Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data",
        "author": "Hien Dang and Tho Tran and Stanley Osher and Hung Tran-The and Nhat Ho and Tan Nguyen",
        "year": "2023",
        "eprint": "2301.00437",
        "venue": "International Conference on Machine Learning",
    },
    "dang2024": {
        "title": "Neural Collapse for Cross-entropy Class-Imbalanced Learning with Unconstrained ReLU Feature Model",
        "author": "Hien Dang and Tho Tran and Tan Nguyen and Nhat Ho",
        "year": "2024",
        "eprint": "2401.02058",
    },
    "daniele2024": {
        "title": "Simple and Effective Transfer Learning for Neuro-Symbolic Integration",
        "author": "Alessandro Daniele and Tommaso Campari and Sagar Malhotra and Luciano Serafini",
        "year": "2024",
        "eprint": "2402.14047",
        "venue": "Neural-Symbolic Learning and Reasoning",
    },
    "dembo1983": {
        "title": "Truncated-Newton algorithms for large-scale unconstrained optimization",
        "author": "Ron S. Dembo and Trond Steihaug",
        "year": "1983",
        "venue": "Mathematical Programming",
    },
    "dormand1980": {
        "title": "A family of embedded Runge-Kutta formulae",
        "author": "J. R. Dormand and P. J. Prince",
        "year": "1980",
        "venue": "Journal of Computational and Applied Mathematics",
    },
    "du2018": {
        "title": "Gradient Descent Provably Optimizes Over-parameterized Neural Networks",
        "author": "Simon S. Du and Xiyu Zhai and Barnabas Poczos and Aarti Singh",
        "year": "2018",
        "eprint": "1810.02054",
    },
    "elkaroui2010": {
        "title": "The spectrum of kernel random matrices",
        "author": "Noureddine El Karoui",
        "year": "2010",
        "venue": "The Annals of Statistics",
    },
    "fang2021": {
        "title": "Exploring deep neural networks via layer-peeled model: Minority collapse in imbalanced training",
        "author": "Cong Fang and Hangfeng He and Qi Long and Weijie J. Su",
        "year": "2021",
        "eprint": "2101.12699",
        "venue": "Proceedings of the National Academy of Sciences",
    },
    "fisher2024": {
        "title": "Pushing Boundaries: Mixup's Influence on Neural Collapse",
        "author": "Quinn Fisher and Haoming Meng and Vardan Papyan",
        "year": "2024",
        "eprint": "2402.06171",
        "venue": "International Conference on Learning Representations",
    },
    "galanti2022": {
        "title": "On the Role of Neural Collapse in Transfer Learning",
        "author": "Tomer Galanti and Andr{\\'a}s Gy{\\\"o}rgy and Marcus Hutter",
        "year": "2022",
        "eprint": "2112.15121",
        "venue": "International Conference on Learning Representations",
    },
    "galanti2022depth": {
        "title": "On the Implicit Bias Towards Minimal Depth of Deep Neural Networks",
        "author": "Tomer Galanti and Liane Galanti and Ido Ben-Shaul",
        "year": "2022",
        "eprint": "2202.09028",
    },
    "gao2023": {
        "title": "Towards Demystifying the Generalization Behaviors When Neural Collapse Emerges",
        "author": "Peifeng Gao and Qianqian Xu and Yibo Yang and Peisong Wen and Huiyang Shao and Zhiyong Yang and "
        "Bernard Ghanem and Qingming Huang",
        "year": "2023",
        "eprint": "2310.08358",
    },
    "garrod2024": {
        "title": "The Persistence of Neural Collapse Despite Low-Rank Bias",
        "author": "Connall Garrod and Jonathan P. Keating",
        "year": "2024",
        "eprint": "2410.23169",
    },
    "graf2021": {
        "title": "Dissecting Supervised Contrastive Learning",
        "author": "Florian Graf and Christoph D. Hofer and Marc Niethammer and Roland Kwitt",
        "year": "2021",
        "eprint": "2102.08817",
        "venue": "International Conference on Machine Learning",
    },
    "han2021": {
        "title": "Neural Collapse Under MSE Loss: Proximity to and Dynamics on the Central Path",
        "author": "X. Y. Han and Vardan Papyan and David L. Donoho",
        "year": "2021",
        "eprint": "2106.02073",
    },
    "he2016": {
        "title": "Deep Residual Learning for Image Recognition",
        "author": "Kaiming He and Xiangyu Zhang and Shaoqing Ren and Jian Sun",
        "year": "2016",
        "eprint": "1512.03385",
        "venue": "IEEE Conference on Computer Vision and Pattern Recognition",
    },
    "hesu2023": {
        "title": "A law of data separation in deep learning",
        "author": "Hangfeng He and Weijie J. Su",
        "year": "2023",
        "eprint": "2210.17020",
        "venue": "Proceedings of the National Academy of Sciences",
    },
    "hong2023": {
        "title": "Neural Collapse for Unconstrained Feature Model under Cross-entropy Loss with Imbalanced Data",
        "author": "Wanli Hong and Shuyang Ling",
        "year": "2023",
        "eprint": "2309.09725",
    },
    "huang2017": {
        "title": "Densely Connected Convolutional Networks",
        "author": "Gao Huang and Zhuang Liu and Laurens van der Maaten and Kilian Q. Weinberger",
        "year": "2017",
        "eprint": "1608.06993",
        "venue": "IEEE Conference on Computer Vision and Pattern Recognition",
    },
    "hui2022": {
        "title": "Limitations of Neural Collapse for Understanding Generalization in Deep Learning",
        "author": "Like Hui and Mikhail Belkin and Preetum Nakkiran",
        "year": "2022",
        "eprint": "2202.08384",
    },
    "jacot2018": {
        "title": "Neural Tangent Kernel: Convergence and Generalization in Neural Networks",
        "author": "Arthur Jacot and Franck Gabriel and Cl{\\'e}ment Hongler",
        "year": "2018",
        "eprint": "1806.07572",
    },
    "jacot2023": {
        "title": "Bottleneck Structure in Learned Features: Low-Dimension vs Regularity Tradeoff",
        "author": "Arthur Jacot",
        "year": "2023",
        "eprint": "2305.19008",
        "venue": "Advances in Neural Information Processing Systems",
    },
    "jacot2024": {
        "title": "Wide Neural Networks Trained with Weight Decay Provably Exhibit Neural Collapse",
        "author": "Arthur Jacot and Peter S{\\'u}ken{\\'i}k and Zihan Wang and Marco Mondelli",
        "year": "2024",
        "eprint": "2410.04887",
    },
    "ji2021": {
        "title": "An Unconstrained Layer-Peeled Perspective on Neural Collapse",
        "author": "Wenlong Ji and Yiping Lu and Yiliang Zhang and Zhun Deng and Weijie J. Su",
        "year": "2021",
        "eprint": "2110.02796",
    },
    "jiang2023": {
        "title": "Generalized Neural Collapse for a Large Number of Classes",
        "author": "Jiachen Jiang and Jinxin Zhou and Peng Wang and Qing Qu and Dustin Mixon and Chong You and Zhihui Zhu",
        "year": "2023",
        "eprint": "2310.05351",
    },
    "kingma2015": {
        "title": "Adam: A Method for Stochastic Optimization",
        "author": "Diederik P. Kingma and Jimmy Ba",
        "year": "2015",
        "eprint": "1412.6980",
        "venue": "International Conference on Learning Representations",
    },
    "kini2023": {
        "title": "Symmetric Neural-Collapse Representations with Supervised Contrastive Loss: The Impact of ReLU and Batching",
        "author": "Ganesh Ramachandra Kini and Vala Vakilian and Tina Behnia and Jaidev Gill and Christos Thrampoulidis",
        "year": "2023",
        "eprint": "2306.07960",
    },
    "kothapalli2022": {
        "title": "Neural Collapse: A Review on Modelling Principles and Generalization",
        "author": "Vignesh Kothapalli",
        "year": "2022",
        "eprint": "2206.04041",
    },
    "kou2023": {
        "title": "Benign Overfitting in Two-layer ReLU Convolutional Neural Networks",
        "author": "Yiwen Kou and Zixiang Chen and Yuanzhou Chen and Quanquan Gu",
        "year": "2023",
        "eprint": "2303.04145",
        "venue": "International Conference on Machine Learning",
    },
    "li2023": {
        "title": "Neural Collapse in Multi-label Learning with Pick-all-label Loss",
        "author": "Pengyu Li and Xiao Li and Yutong Wang and Qing Qu",
        "year": "2023",
        "eprint": "2310.15903",
    },
    "liu1989": {
        "title": "On the limited memory BFGS method for large scale optimization",
        "author": "Dong C. Liu and Jorge Nocedal",
        "year": "1989",
        "venue": "Mathematical Programming",
    },
    "lu2020": {
        "title": "Neural Collapse with Cross-Entropy Loss",
        "author": "Jianfeng Lu and Stefan Steinerberger",
        "year": "2020",
        "eprint": "2012.08465",
    },
    "massion2026": {
        "title": "The role of class encoding in neural collapse",
        "author": "Bastien Massion and Roy Makhlouf and Estelle Massart",
        "year": "2026",
        "eprint": "2606.00344",
    },
    "mixon2020": {
        "title": "Neural collapse with unconstrained features",
        "author": "Dustin G. Mixon and Hans Parshall and Jianzong Pi",
        "year": "2020",
        "eprint": "2011.11619",
    },
    "papyan2020": {
        "title": "Prevalence of neural collapse during the terminal phase of deep learning training",
        "author": "Vardan Papyan and X. Y. Han and David L. Donoho",
        "year": "2020",
        "eprint": "2008.08186",
        "venue": "Proceedings of the National Academy of Sciences",
    },
    "pezeshki2020": {
        "title": "Gradient Starvation: A Learning Proclivity in Neural Networks",
        "author": "Mohammad Pezeshki and S{\\'e}kou-Oumar Kaba and Yoshua Bengio and Aaron Courville and Doina Precup "
        "and Guillaume Lajoie",
        "year": "2020",
        "eprint": "2011.09468",
    },
    "polyak1964": {
        "title": "Some methods of speeding up the convergence of iteration methods",
        "author": "B. T. Polyak",
        "year": "1964",
        "venue": "USSR Computational Mathematics and Mathematical Physics",
    },
    "rangamani2023": {
        "title": "Feature learning in deep classifiers through Intermediate Neural Collapse",
        "author": "Akshay Rangamani and Marius Lindegaard and Tomer Galanti and Tomaso Poggio",
        "year": "2023",
        "venue": "International Conference on Machine Learning",
    },
    "razborov2022": {
        "title": "Improved Convergence Guarantees for Shallow Neural Networks",
        "author": "Alexander Razborov",
        "year": "2022",
        "eprint": "2212.02323",
    },
    "sakamoto2025": {
        "title": "Explaining Grokking and Information Bottleneck through Neural Collapse Emergence",
        "author": "Keitaro Sakamoto and Issei Sato",
        "year": "2025",
        "eprint": "2509.20829",
    },
    "simonyan2015": {
        "title": "Very Deep Convolutional Networks for Large-Scale Image Recognition",
        "author": "Karen Simonyan and Andrew Zisserman",
        "year": "2015",
        "eprint": "1409.1556",
        "venue": "International Conference on Learning Representations",
    },
    "sukenik2023": {
        "title": "Deep Neural Collapse Is Provably Optimal for the Deep Unconstrained Features Model",
        "author": "Peter S{\\'u}ken{\\'i}k and Marco Mondelli and Christoph Lampert",
        "year": "2023",
        "eprint": "2305.13165",
        "venue": "Advances in Neural Information Processing Systems",
    },
    "sukenik2024": {
        "title": "Neural Collapse versus Low-rank Bias: Is Deep Neural Collapse Really Optimal?",
        "author": "Peter S{\\'u}ken{\\'i}k and Christoph Lampert and Marco Mondelli",
        "year": "2024",
        "eprint": "2405.14468",
        "venue": "Advances in Neural Information Processing Systems",
    },
    "thrampoulidis2022": {
        "title": "Imbalance Trouble: Revisiting Neural-Collapse Geometry",
        "author": "Christos Thrampoulidis and Ganesh Ramachandra Kini and Vala Vakilian and Tina Behnia",
        "year": "2022",
        "eprint": "2208.05512",
        "venue": "Advances in Neural Information Processing Systems",
    },
    "tirer2022": {
        "title": "Extended Unconstrained Features Model for Exploring Deep Neural Collapse",
        "author": "Tom Tirer and Joan Bruna",
        "year": "2022",
        "eprint": "2202.08087",
        "venue": "International Conference on Machine Learning",
    },
    "touvron2021": {
        "title": "Training data-efficient image transformers & distillation through attention",
        "author": "Hugo Touvron and Matthieu Cord and Matthijs Douze and Francisco Massa and others",
        "year": "2021",
        "eprint": "2012.12877",
        "venue": "International Conference on Machine Learning",
    },
    "wang2024": {
        "title": "Navigate Beyond Shortcuts: Debiased Learning Through the Lens of Neural Collapse",
        "author": "Yining Wang and Junjie Sun and Chenyue Wang and Mi Zhang and Min Yang",
        "year": "2024",
        "eprint": "2405.05587",
        "venue": "IEEE/CVF Conference on Computer Vision and Pattern Recognition",
    },
    "wu2025": {
        "title": "Neural Collapse Beyond the Unconstrained Features Model: Landscape, Dynamics, and Generalization in "
        "the Mean-Field Regime",
        "author": "Diyuan Wu and Marco Mondelli",
        "year": "2025",
        "eprint": "2501.19104",
    },
    "xu2023": {
        "title": "Quantifying the Variability Collapse of Neural Networks",
        "author": "Jing Xu and Haoxiong Liu",
        "year": "2023",
        "eprint": "2306.03440",
        "venue": "International Conference on Machine Learning",
    },
    "yaras2022": {
        "title": "Neural Collapse with Normalized Features: A Geometric Analysis over the Riemannian Manifold",
        "author": "Can Yaras and Peng Wang and Zhihui Zhu and Laura Balzano and Qing Qu",
        "year": "2022",
        "eprint": "2209.09211",
        "venue": "Advances in Neural Information Processing Systems",
    },
    "zangrando2024": {
        "title": "Neural Rank Collapse: Weight Decay and Small Within-Class Variability Yield Low-Rank Bias",
        "author": "Emanuele Zangrando and Piero Deidda and Simone Brugiapaglia and Nicola Guglielmi and Francesco Tudisco",
        "year": "2024",
        "eprint": "2402.03991",
    },
    "zhou2022losses": {
        "title": "Are All Losses Created Equal: A Neural Collapse Perspective",
        "author": "Jinxin Zhou and Chong You and Xiao Li and Kangning Liu and Sheng Liu and Qing Qu and Zhihui Zhu",
        "year": "2022",
        "eprint": "2210.02192",
        "venue": "Advances in Neural Information Processing Systems",
    },
    "zhou2022mse": {
        "title": "On the Optimization Landscape of Neural Collapse under MSE Loss: Global Optimality with Unconstrained Features",
        "author": "Jinxin Zhou and Xiao Li and Tianyu Ding and Chong You and Qing Qu and Zhihui Zhu",
        "year": "2022",
        "eprint": "2203.01238",
        "venue": "International Conference on Machine Learning",
    },
    "zhu2021": {
        "title": "A Geometric Analysis of Neural Collapse with Unconstrained Features",
        "author": "Zhihui Zhu and Tianyu Ding and Jinxin Zhou and Xiao Li and Chong You and Jeremias Sulam and Qing Qu",
        "year": "2021",
        "eprint": "2105.02375",
        "venue": "Advances in Neural Information Processing Systems",
    },
}
JOURNALS = (
    "Journal of Computational and Applied Mathematics",
    "Mathematical Programming",
    "Proceedings of the National Academy of Sciences",
    "SIAM Journal on Control and Optimization",
    "SIAM Journal on Scientific Computing",
    "The Annals of Statistics",
    "USSR Computational Mathematics and Mathematical Physics",
)


def cite(keys: str | list[str] | tuple[str, ...]) -> str:
    r"""Return the BibTeX entries of `keys` (one key or several), each once, in the order first named.

    Raises:
        RequestError: a key that is not in REFERENCES, with a suggestion.

    >>> print(cite("hui2022").splitlines()[0])
    @misc{hui2022,
    """
    keys = [keys] if isinstance(keys, str) else list(keys)
    unknown = [key for key in keys if key not in REFERENCES]
    if unknown:
        from ufm.errors import RequestError
        from ufm.tables import suggest

        raise RequestError(f"unknown reference {unknown[0]!r}; {suggest(unknown[0], REFERENCES)}")
    return "\n\n".join(_entry(key, REFERENCES[key]) for key in dict.fromkeys(keys))


def _entry(key: str, fields: dict[str, str]) -> str:
    venue = fields.get("venue")
    kind = "misc" if venue is None else "article" if venue in JOURNALS else "inproceedings"
    lines = [("title", f"{{{fields['title']}}}"), ("author", fields["author"]), ("year", fields["year"])]
    if venue is not None:
        lines.append(("journal" if kind == "article" else "booktitle", venue))
    if "eprint" in fields:
        lines += [("eprint", fields["eprint"]), ("archivePrefix", "arXiv")]
    body = ",\n".join(f"  {name} = {{{text}}}" for name, text in lines)
    return f"@{kind}{{{key},\n{body}\n}}"
