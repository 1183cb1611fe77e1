"""Ablation studies in PyTorch: a study is expanded into trials, trials are run as attempts, attempts leave facts,
facts become effects, effects become a report."""

__version__ = "0.1.0"
