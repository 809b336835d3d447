"""Layer 3: proposes merges, with Optuna by ask and tell. The only package that imports Optuna."""
