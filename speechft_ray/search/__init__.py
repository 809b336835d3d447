"""The search's way to Optuna, by ask and tell. The only room that knows it."""
