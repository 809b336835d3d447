"""Layer 6: what ``import speechft_ray`` offers to notebooks and programs."""
