"""Layer 4: tables, figures and pages from what the store holds. Imports no torch, no Ray and no
MLflow."""
