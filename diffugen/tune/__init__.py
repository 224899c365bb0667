"""The search for better label settings and score weights. The only home of Optuna."""
