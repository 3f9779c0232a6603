"""The papers of all methods: BibTeX key, title, authors and arXiv number.

A published family is cited by its name in `registry.FAMILIES`, so a new one has its paper here.
"""

PAPERS = {
    "llamagen": (
        "sun2024llamagen",
        "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation",
        "Sun, Peize and Jiang, Yi and Chen, Shoufa and Zhang, Shilong and Peng, Bingyue and "
        "Luo, Ping and Yuan, Zehuan",
        "2406.06525",
    ),
    "masc": (
        "he2025masc",
        "MASC: Boosting Autoregressive Image Generation with a Manifold-Aligned Semantic "
        "Clustering",
        "He, Lixuan and Zheng, Shikang and Zhang, Linfeng",
        "2510.04220",
    ),
    "dcpe": (
        "tang2025dcpe",
        "Exploiting Discriminative Codebook Prior for Autoregressive Image Generation",
        "Tang, Longxiang and Chu, Ruihang and Wang, Xiang and Han, Yujin and Wu, Pingyu and He, "
        "Chunming and Zhang, Yingya and Zhang, Shiwei and Jia, Jiaya",
        "2508.10719",
    ),
    "ctf": (
        "guo2025ctf",
        "Improving Autoregressive Image Generation through Coarse-to-Fine Token Prediction",
        "Guo, Ziyao and Zhang, Kaipeng and Shieh, Michael Qizhe",
        "2503.16194",
    ),
    "iar": (
        "hu2025iar",
        "Improving Autoregressive Visual Generation with Cluster-Oriented Token Prediction",
        "Hu, Teng and Zhang, Jiangning and Yi, Ran and Weng, Jieyu and Wang, Yabiao and Zeng, "
        "Xianfang and Xue, Zhucun and Ma, Lizhuang",
        "2501.00880",
    ),
    "iar2": (
        "yi2025iar2",
        "IAR2: Improving Autoregressive Visual Generation with Semantic-Detail Associated Token "
        "Prediction",
        "Yi, Ran and Hu, Teng and Su, Zihan and Ma, Lizhuang",
        "2510.06928",
    ),
}
